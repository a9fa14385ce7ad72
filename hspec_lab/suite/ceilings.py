"""Part `ceilings`: what the device can do at best, which the kernels are held against.

copy           bytes read and written a second, by PyTorch's copy
read           bytes read a second by `stream_read`, in sizes of 4-bit layers and larger
matmul         16-bit operations a second of PyTorch's product of two 8192 x 8192 matrices
launch         what one launch of a Triton kernel costs the host
graph_launch   what one launch inside a CUDA graph costs the device
"""

from time import perf_counter_ns

import torch

from hspec_lab.suite.clock import spread, time_interleaved
from hspec_lab.suite.part import Bench, Part, Row, attempt
from hspec_lab.suite.summary import WANTED_SIZES

COLUMNS = {
    "what": "str",
    "n_bytes": "int64",  # moved, of copy, read and matmul
    "config": "str",
    "time_us": "float64",
    "low_us": "float64",
    "high_us": "float64",
    "rate": "float64",
    "unit": "str",  # of the rate; empty where there is none
    "note": "str",
}
_LAUNCHES = 100


def w4a16_bytes(R: int, C: int, group_size: int = 128) -> int:
    """Bytes of a 4-bit layer with a 16-bit scale and zero for each group."""
    return R * C // 2 + 4 * R * C // group_size


def items(bench: Bench) -> list[Row]:
    large, layers = 1 << 30, [w4a16_bytes(R, C) for R, C in WANTED_SIZES]
    side = 64 if bench.tiny else 8192
    if bench.tiny:
        large, layers = 1 << 17, [1 << 16, 1 << 15]
    sizes = [
        *(("read", n) for n in (*layers, large)),
        ("copy", 2 * large),
        ("matmul", 3 * 2 * side**2),
        ("launch", 0),
        ("graph_launch", 0),
    ]
    return [{"what": what, "n_bytes": n} for what, n in sizes]


def measure(bench: Bench, item: Row) -> list[Row]:
    rows, note = attempt(lambda: _MEASURES[item["what"]](bench, item["n_bytes"]))
    return [item | row for row in rows] if not note else [item | {"note": note}]


def _read(bench: Bench, n_bytes: int) -> list[Row]:
    from hspec_kernels.stream_read import CONFIGS, stream_read

    words = torch.zeros(n_bytes // 4, dtype=torch.int32, device=bench.device)
    calls = {f"{n} warps": lambda n=n: stream_read(words, num_warps=n) for n in CONFIGS}
    return _rates(calls, bench, n_bytes / 1e3, "GB/s")


def _copy(bench: Bench, n_bytes: int) -> list[Row]:
    source = torch.zeros(n_bytes // 2, dtype=torch.uint8, device=bench.device)
    target = torch.empty_like(source)
    return _rates({"torch": lambda: target.copy_(source)}, bench, n_bytes / 1e3, "GB/s")


def _matmul(bench: Bench, n_bytes: int) -> list[Row]:
    side = round((n_bytes / 6) ** 0.5)
    a, b = (
        torch.randn(side, side, device=bench.device).to(bench.dtype) * side**-0.5 for _ in range(2)
    )
    calls = {f"torch {side}": lambda: torch.matmul(a, b)}
    return _rates(calls, bench, 2 * side**3 / 1e6, "TFLOP/s")


def _rates(calls: dict, bench: Bench, amount: float, unit: str) -> list[Row]:
    """One row a call; `amount` / us is its rate."""
    return [
        _times(config, times) | {"rate": amount / times[0], "unit": unit}
        for config, times in time_interleaved(calls, bench).items()
    ]


def _times(config: str, times: tuple[float, float, float]) -> Row:
    return {"config": config} | dict(zip(("time_us", "low_us", "high_us"), times, strict=True))


def _launch(bench: Bench, n_bytes: int) -> list[Row]:
    """Host time; the device keeps up with a kernel that does nothing."""
    launch, samples = _launcher(bench), []
    n = 3 if bench.tiny else _LAUNCHES
    for _ in range(1 + bench.repeats):
        bench.settle()
        begun = perf_counter_ns()
        for _ in range(n):
            launch()
        samples.append((perf_counter_ns() - begun) / 1e3 / n)
    return [_times("triton", spread(samples[1:]))]


def _graph_launch(bench: Bench, n_bytes: int) -> list[Row]:
    if not bench.on_cuda:
        raise ValueError("CUDA graphs need a CUDA device")
    launch, graph = _launcher(bench), torch.cuda.CUDAGraph()
    launch()
    bench.settle()
    with torch.cuda.graph(graph):
        for _ in range(_LAUNCHES):
            launch()
    times = time_interleaved({"graph": graph.replay}, bench)["graph"]
    return [_times(f"graph of {_LAUNCHES}", tuple(time / _LAUNCHES for time in times))]


def _launcher(bench: Bench):
    from hspec_kernels.stream_read import launch_nothing

    anything = torch.zeros(1, dtype=torch.int32, device=bench.device)
    return lambda: launch_nothing(anything)


_MEASURES = {
    "read": _read,
    "copy": _copy,
    "matmul": _matmul,
    "launch": _launch,
    "graph_launch": _graph_launch,
}
PART = Part(
    name="ceilings",
    answers="What can this device do at best: read, copy, multiply, launch?",
    columns=COLUMNS,
    items=items,
    measure=measure,
)
