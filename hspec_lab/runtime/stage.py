"""A stage: launches that are always the same, over memory that is always the same.

On CUDA a stage runs as it is the first time, which compiles its kernels; the second time it is
captured as a CUDA graph, and from then on one launch replays it.  Elsewhere it simply runs.
"""

import gc
from collections.abc import Callable

import torch

# rows of a pass, padded: kernels work in tiles of 16, so that few more shapes would cost less
BUCKETS = (1, 2, 4, 8, 16, 24, 32, 48, 64, 80, 96, 112, 128)


def bucket_of(rows: int) -> int:
    """The smallest bucket that holds `rows`; above the largest, the next multiple of 64."""
    return next((bucket for bucket in BUCKETS if bucket >= rows), -(-rows // 64) * 64)


class Stage:
    """Launches without arguments and results: everything they read and write stays where it is.

    Args:
        launches: nothing in it may depend on values on the device, wait for them, or change from
            one call to the next.
        pool: a `torch.cuda.graph_pool_handle()` that stages share; what a stage leaves for
            another must therefore lie in memory from outside of both.
    """

    __slots__ = ("_graph", "_launches", "_pool", "_ran", "device")

    def __init__(self, launches: Callable[[], None], device: torch.device, pool):
        self._launches, self._pool, self.device = launches, pool, device
        self._ran, self._graph = False, None

    @property
    def captured(self) -> bool:
        return self._graph is not None

    def __call__(self) -> None:
        if self._graph is None and self._ran and self.device.type == "cuda":
            self._graph = self._captured()
        if self._graph is not None:
            self._graph.replay()
        else:
            self._launches()
            self._ran = True

    def _captured(self) -> torch.cuda.CUDAGraph:
        graph, collects = torch.cuda.CUDAGraph(), gc.isenabled()
        # decoders are cycles: collecting one would free its graphs in the middle of this capture
        gc.disable()
        try:
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                self._launches()
        finally:
            if collects:
                gc.enable()
        return graph
