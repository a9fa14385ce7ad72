"""A stopped run goes on where it was, and a folder is taken again only where it is the same."""

import json
import os
from functools import partial

import pytest
from small import SIZES, change, marks, settle, small, text

from hspec_lab.quantize import Calibration, driver, quantize, widths
from hspec_lab.quantize.folder import LayerFiles


@pytest.fixture
def shelf(monkeypatch, tmp_path):
    return settle(monkeypatch, tmp_path / "shelf")


@pytest.fixture
def model(tmp_path):
    return small(tmp_path / "m", num_hidden_layers=3)


def content(folder) -> dict:
    """Bytes of every file; of the config all but the seconds it took."""
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    config = json.loads(files.pop("config.json"))
    config["hspec"].pop("seconds")
    return files | {"config": config}


def stop_at(words: str):
    def progress(done, total, said):
        if words in said:
            raise KeyboardInterrupt

    return progress


def count(monkeypatch, owner, name) -> list:
    """Calls of a function, each by its first arguments."""
    calls, function = [], getattr(owner, name)

    def counted(*args, **options):
        calls.append(options.get("name") or len(calls))
        return function(*args, **options)

    monkeypatch.setattr(owner, name, counted)
    return calls


@pytest.mark.parametrize(
    "format,rounder,n_units",
    [
        ("w4a16-g32+gptq", "gptq", 12),
        ("w4a16-g32+quarot+smooth+gptq", "gptq", 12),
        ("w4a16-g32+awq", "awq", 12),
        ("w3a16-g32+lim+gptq", "gptq", 12),
        ("bitstack-0.5mb+smooth", "stack_of", 12),
    ],
)
@pytest.mark.parametrize("after", ["layer 1 of 3", "layer 2 of 3"])
def test_a_stopped_run_rounds_no_unit_twice(
    model, shelf, monkeypatch, format, rounder, n_units, after
):
    whole = content(quantize(f"{model}@{format}"))
    monkeypatch.setenv("HSPEC_MODELS", str(shelf / "again"))
    calls = count(monkeypatch, driver, rounder)
    with pytest.raises(KeyboardInterrupt):
        quantize(f"{model}@{format}", progress=stop_at(after))
    assert len(calls) == 4 * int(after.split()[1])
    shown = [path for path in (shelf / "again").iterdir() if (path / "config.json").exists()]
    assert not shown
    assert content(quantize(f"{model}@{format}")) == whole
    assert len(calls) == n_units


def test_a_search_goes_on_from_its_last_generation(model, shelf, monkeypatch):
    search = partial(widths.widths_by_evolution, generations=4)
    monkeypatch.setattr(driver, "widths_by_evolution", search)
    format = "w3a16-g32+evopress"
    whole = content(quantize(f"{model}@{format}"))
    monkeypatch.setenv("HSPEC_MODELS", str(shelf / "again"))
    losses = count(monkeypatch, widths.Mixed, "loss")
    with pytest.raises(KeyboardInterrupt):
        quantize(f"{model}@{format}", progress=stop_at("generation 3"))
    n_stopped = len(losses)
    assert content(quantize(f"{model}@{format}")) == whole
    monkeypatch.setenv("HSPEC_MODELS", str(shelf / "uninterrupted"))
    n_so_far = len(losses)
    quantize(f"{model}@{format}")
    # the one they meet at is measured once more
    assert n_so_far - n_stopped < n_stopped
    assert n_so_far == len(losses) - n_so_far + 1


def test_a_half_written_file_never_counts(model, shelf, monkeypatch):
    name = f"{model}@w4a16-g32+gptq"
    whole = content(quantize(name))
    monkeypatch.setenv("HSPEC_MODELS", str(shelf / "again"))
    replace, seen = os.replace, []

    def torn(half, path):
        if str(path).endswith("layer-00001.safetensors"):
            seen.append(path)
            with open(half, "r+b") as file:
                file.truncate(1000)
            raise KeyboardInterrupt
        return replace(half, path)

    monkeypatch.setattr(os, "replace", torn)
    with pytest.raises(KeyboardInterrupt):
        quantize(name)
    (unfinished,) = (shelf / "again").iterdir()
    (half,) = unfinished.glob("layer-00001.*.tmp")
    assert half.stat().st_size == 1000
    assert LayerFiles(unfinished).has("layer-00000")
    assert not LayerFiles(unfinished).has("layer-00001") and len(seen) == 1
    monkeypatch.setattr(os, "replace", replace)
    assert content(quantize(name)) == whole


def test_seconds_of_both_halves_are_counted(model, shelf, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(driver.time, "monotonic", lambda: now[0])

    def progress(done, total, said):
        now[0] += 100
        if "layer 2 of 3" in said:
            raise KeyboardInterrupt

    name = f"{model}@w4a16-g32+hqq"
    with pytest.raises(KeyboardInterrupt):
        quantize(name, progress=progress)  # 200 s until its second layer is written
    now[0] = 10_000.0
    assert marks(quantize(name))["seconds"] == 200


def test_what_is_made_is_not_made_again(model, shelf, monkeypatch):
    folder = quantize(f"{model}@w4a16-g32+gptq")
    calls = count(monkeypatch, driver, "gptq")
    assert quantize(f"{model}@w4a16-g32+gptq") == folder and not calls
    assert quantize(f"{model}@w4a16-g32+gptq+reference") == folder and not calls


def test_another_text_other_weights_and_another_format_have_folders_of_their_own(model, shelf):
    folders = [quantize(f"{model}@w4a16-g32+hqq")]
    folders.append(quantize(f"{model}@w4a16-g32+hqq", Calibration((text(900, 1),))))
    folders.append(quantize(f"{model}@w4a16-g32+hqq", Calibration(sequences=4)))
    folders.append(quantize(f"{model}@w4a16-g32+hqq", Calibration(length=32)))
    folders.append(quantize(f"{model}@w4a16-g64+hqq"))
    os.utime(model / "model.safetensors")
    folders.append(quantize(f"{model}@w4a16-g32+hqq"))
    change(model, lambda tensors: tensors["lm_head.weight"].mul_(2))
    folders.append(quantize(f"{model}@w4a16-g32+hqq"))
    assert len(set(folders)) == 7
    assert marks(folders[1])["calibration"] != marks(folders[0])["calibration"]


def test_a_stack_of_another_size_takes_nothing_apart_again(model, shelf, monkeypatch):
    quantize(f"{model}@bitstack-0.4mb")
    calls = count(monkeypatch, driver, "stack_of")
    quantize(f"{model}@bitstack-0.5mb")
    assert not calls
    quantize(f"{model}@bitstack-0.5mb", Calibration((text(900, 1),)))
    assert len(calls) == 4 * 3 and SIZES["hidden_size"] == 128
