"""Part `gaps`: where the microseconds of one decoding step go, kernel by kernel, and between them.

One step of plain decoding is two CUDA graphs.  PyTorch's profiler notes when each kernel inside
them ran; what remains of the time from the first kernel to the last is `between kernels`: launches
that the graph has made cheap, not free, and once a step the host's turn, which reads a token and
launches the next graph.  The profiler itself slows launches a little, so shares are what to read,
and part `curves` for times.
"""

from collections.abc import Iterable

import torch

from hspec_lab.runtime import DeviceLevel, Memory
from hspec_lab.suite.part import Bench, Part, Row
from hspec_lab.suite.shapes import make_model

COLUMNS = {
    "model": "str",
    "scheme": "str",
    "context": "int64",
    "kernel": "str",
    "launches": "float64",  # of a step
    "us": "float64",  # of a step
    "share": "float64",
    "note": "str",
}
BETWEEN = "between kernels"
_STEPS = 16


def items(bench: Bench) -> list[Row]:
    models = ("tiny",) if bench.tiny else ("llama-3-70b", "llama-3-8b")
    return [{"model": model, "scheme": "w4a16-g128", "context": 512} for model in models]


@torch.inference_mode()
def measure(bench: Bench, item: Row) -> list[Row]:
    if not bench.on_cuda:
        raise ValueError("kernels are profiled on CUDA devices")
    context = item["context"]
    model = make_model(bench, item["model"], item["scheme"], context + 2 * _STEPS + 64)
    memory = Memory(context + 2 * _STEPS + 64, bench.device)
    level = DeviceLevel(model, None, memory, level="target", phase="verify_target")
    level.start_made_up(context)
    for _ in range(4):  # compiled, captured, replayed
        level.round()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        for _ in range(_STEPS):
            level.round()
        bench.settle()
    on_device = torch.autograd.DeviceType.CUDA
    ran = [
        (event.name, event.time_range.start, event.time_range.end)
        for event in profile.events()
        if event.device_type == on_device
    ]
    return [item | row for row in itemise(ran, _STEPS)]


def itemise(ran: Iterable[tuple[str, float, float]], n_steps: int) -> list[Row]:
    """Rows of kernels, the longest first, and of what lies between them.

    Args:
        ran: name, begin and end of everything that ran on the device, us, in any order.

    Raises:
        ValueError: nothing ran.
    """
    ran = sorted(ran, key=lambda entry: entry[1])
    if not ran:
        raise ValueError("the profiler noted nothing on the device")
    whole = max(end for _, _, end in ran) - ran[0][1]
    busy, reached = 0.0, ran[0][1]
    for _, begun, ended in ran:  # what overlaps counts once
        busy += max(0.0, ended - max(begun, reached))
        reached = max(reached, ended)
    names = dict.fromkeys(name for name, _, _ in ran)
    spent = {name: [end - begun for n, begun, end in ran if n == name] for name in names}
    rows = [
        {"kernel": name, "launches": len(us) / n_steps, "us": sum(us) / n_steps}
        for name, us in spent.items()
    ]
    rows.sort(key=lambda row: -row["us"])
    between = {"kernel": BETWEEN, "launches": 0.0, "us": (whole - busy) / n_steps}
    return [row | {"share": row["us"] * n_steps / whole} for row in (*rows, between)]


PART = Part(
    name="gaps",
    answers="Where does each microsecond of a decoding step go, and how much lies between kernels?",
    columns=COLUMNS,
    items=items,
    measure=measure,
)
