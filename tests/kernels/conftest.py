"""Kernels run interpreted where there is no CUDA device; never-written memory is NaN."""

import os

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when triton's own functions are imported
pytest.importorskip("triton", reason="kernels need triton")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
REAL_EMPTY = {name: getattr(torch, name) for name in ("empty", "empty_like")}


@pytest.fixture
def device() -> str:
    return DEVICE


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture(autouse=True)
def poisoned(monkeypatch):
    """`torch.empty` and `empty_like` give NaN, or the largest integer, not whatever lay there."""

    def poison(make):
        def made(*args, **kwargs):
            tensor = make(*args, **kwargs)
            bad = torch.nan if tensor.is_floating_point() else torch.iinfo(tensor.dtype).max
            return tensor.fill_(bad)

        return made

    for name, make in REAL_EMPTY.items():
        monkeypatch.setattr(torch, name, poison(make))
