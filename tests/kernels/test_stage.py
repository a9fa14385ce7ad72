"""How a stage is captured, with a graph that only counts: what is left when a capture fails."""

import gc
from contextlib import contextmanager

import pytest
import torch

from hspec_lab.runtime.stage import Stage


class Graph:
    """Stands in for a CUDA graph: replaying it is counted."""

    replays = 0

    def replay(self) -> None:
        self.replays += 1


@pytest.fixture
def captures(monkeypatch):
    """Whether garbage was collected during each capture."""
    seen = []

    @contextmanager
    def capturing(graph, **options):
        seen.append(gc.isenabled())
        yield

    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", capturing)
    return seen


def test_a_stage_runs_then_is_captured_and_then_replayed(captures):
    calls = []
    stage = Stage(lambda: calls.append(1), torch.device("cuda"), None)
    stage()
    assert not stage.captured and not captures
    for _ in range(3):
        stage()
    assert len(calls) == 2 and captures == [False] and stage._graph.replays == 3
    assert gc.isenabled()


def test_a_capture_that_failed_leaves_no_graph_behind(captures):
    failing = [False, True, False]

    def launches():
        if failing.pop(0):
            raise torch.OutOfMemoryError("tried to allocate")

    stage = Stage(launches, torch.device("cuda"), None)
    stage()
    with pytest.raises(torch.OutOfMemoryError):
        stage()
    assert not stage.captured and gc.isenabled()
    stage()
    assert stage.captured and stage._graph.replays == 1
