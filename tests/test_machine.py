"""Which numbers a run's device has: its own, measured on the same machine, or published."""

import json

import pytest

from hspec_lab.analysis.machine import machine

CPU = {"device": "cpu", "gpu": None, "cpu": "Invented 9000", "threads": 2, "cpu_capability": "no"}
GPU = CPU | {"device": "cuda", "gpu": "NVIDIA H200", "capability": "9.0"}


@pytest.fixture(autouse=True)
def empty_store(tmp_path, monkeypatch):
    monkeypatch.setenv("HSPEC_STORE", str(tmp_path / "store"))


def cost_folder(path, conditions, rate):
    path.mkdir(parents=True)
    head = {"schema": 1, "conditions": conditions, "read_gb_per_s": rate}
    (path / "measure.json").write_text(json.dumps(head))
    return path


def test_cost_curves_of_the_same_machine_say_its_bandwidth(tmp_path):
    root = tmp_path / "store"
    cost_folder(root / "older", CPU | {"date": "2026-01-01"}, 20.0)
    cost_folder(root / "newer", CPU | {"date": "2026-02-01"}, 30.0)
    cost_folder(root / "other", CPU | {"date": "2026-03-01", "threads": 4}, 99.0)
    cost_folder(root / "damaged", CPU, "fast")
    assert machine(CPU).bytes_per_s == 30e9
    assert machine(CPU).numbers["bandwidth"].source.startswith("measured: newer/")
    assert machine(CPU, root / "older").bytes_per_s == 20e9
    with pytest.raises(ValueError, match="measured on threads 4, not 2"):
        machine(CPU, root / "other")
    with pytest.raises(ValueError, match="read_gb_per_s above 0, got 'fast'"):
        machine(CPU, root / "damaged")


def test_a_gpu_is_known_by_the_name_that_cuda_gives_it():
    found = machine(GPU)
    assert found.name == "h200" and found.peak("fp16") > 0
    own = machine(GPU | {"read_gb_per_s": 4000.0})
    assert own.bytes_per_s == 4e12 and own.peak("fp16") == found.peak("fp16")
    assert machine(GPU | {"gpu": "NVIDIA H100 PCIe"}).numbers == {}


def test_a_device_of_another_kind_is_refused():
    with pytest.raises(ValueError, match="the run is of a cpu, NVIDIA H100 80GB SXM is a gpu"):
        machine(CPU, "h100")
    with pytest.raises(ValueError, match="no device 'h1000'"):
        machine(CPU, "h1000")
