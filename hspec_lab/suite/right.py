"""Part `kernels_right`: every kernel against its definition, on inputs nobody has seen before.

Definitions compute in float64 on the same device.  Floats may differ by a case's own tolerance
(one for both dtypes: those that round to 16 bits on the way allow for bf16), integers not at all.
"""

import secrets

import torch
from torch import Tensor

from hspec_lab.suite.part import Bench, Part, Row, attempt

COLUMNS = {
    "operation": "str",
    "case": "str",
    "dtype": "str",
    "seed": "int64",
    "error": "float64",  # largest RMS ratio of a float output, share of integers that differ
    "tolerance": "float64",
    "ok": "boolean",  # none: cannot run on this device
    "note": "str",
}


def items(bench: Bench) -> list[Row]:
    from hspec_kernels.case import operations, value_cases

    dtypes = ("bfloat16", "float16") if bench.on_cuda else ("float16",)
    return [
        {"operation": operation, "case": case.name, "dtype": dtype}
        for dtype in dtypes
        for operation in operations()
        for case in value_cases(operation)[: 1 if bench.tiny else None]
    ]


def measure(bench: Bench, item: Row) -> list[Row]:
    from hspec_kernels.case import value_cases

    case = next(c for c in value_cases(item["operation"]) if c.name == item["case"])
    seed = secrets.randbits(31)
    generator = torch.Generator().manual_seed(seed)
    inputs = case.make(generator, bench.device, getattr(torch, item["dtype"]))
    row = item | {"seed": seed, "tolerance": case.tolerance}
    if note := _unfit(inputs):
        return [row | {"note": note}]
    found, note = attempt(lambda: _compare(case, inputs))
    if note:
        return [row | {"ok": False, "note": note}]
    error, ok = found
    return [row | {"error": error, "ok": ok}]


def _unfit(inputs: dict) -> str:
    """Why a device cannot run these inputs, if it cannot."""
    from hspec_kernels.fp8_matmul import E4M3, knows_e4m3

    x = inputs.get("x")
    if isinstance(x, Tensor) and x.dtype == E4M3 and not knows_e4m3(x.device):
        return "e4m3 rows need compute capability 8.9"
    return ""


def _compare(case, inputs: dict) -> tuple[float, bool]:
    """The largest error of any output, and whether all are within what the case allows."""
    from hspec_kernels.case import rms_ratio

    # some operations write into what they are given
    copies = {k: v.clone() if isinstance(v, Tensor) else v for k, v in inputs.items()}
    found, wanted = (
        outputs if isinstance(outputs, tuple) else (outputs,)
        for outputs in (case.op(**inputs), case.reference(**copies))
    )
    error, ok = 0.0, True
    for out, ref in zip(found, wanted, strict=True):
        if (out.shape, out.dtype) != (ref.shape, ref.dtype):
            raise ValueError(
                f"gave {out.dtype} {list(out.shape)}, not {ref.dtype} {list(ref.shape)}"
            )
        if out.is_floating_point():
            off, allowed = rms_ratio(out, ref), case.tolerance
        else:
            off, allowed = float((out != ref).double().mean()), 0.0
        error, ok = max(error, off), ok and off <= allowed
    return error, ok


PART = Part(
    name="kernels_right",
    answers="Does every kernel compute what its definition says, on this device?",
    columns=COLUMNS,
    items=items,
    measure=measure,
)
