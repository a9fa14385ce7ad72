"""What a kernel is tried on: value cases (against a definition) and compile cases (budgets).

One list serves the interpreter tests, the GPU suite, ahead-of-time compilation and benchmarks.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class ValueCase:
    """An operation and its definition on fresh random inputs.

    Attributes:
        make: (generator, device, dtype) -> keyword arguments, for both.  The generator is a CPU
            one, so that all devices see the same numbers; dtype is fp16 or bf16.
        tolerance: largest root-mean-square ratio rms(out - ref) / rms(ref) of any float output;
            integer outputs must be equal.
    """

    name: str
    op: Callable
    reference: Callable
    make: Callable[[torch.Generator, str, torch.dtype], dict]
    tolerance: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class CompileCase:
    """A kernel and what its compiled form may use.

    Attributes:
        kernel: the `triton.jit` function.
        signature: argument name -> Triton type ("*fp16", "*i32", "i32", "fp32"), constexprs left
            out; pointers are taken as 16-byte aligned.
        constants: constexpr name -> value.
        divisible: integer arguments known to be multiples of 16.
        chosen: whether the runtime uses this configuration (the others only compile in `bench`).
        max_registers, max_shared_bytes: per thread, per program.
        max_loop_per_weight: instructions of the main loop for each weight of a tile, if limited.
        targets: compute capabilities it must compile for.
        facts: numbers about it; "weights" is how many a step of the main loop multiplies.
    """

    name: str
    kernel: object
    signature: dict[str, str]
    constants: dict[str, object]
    num_warps: int = 4
    num_stages: int = 3
    divisible: tuple[str, ...] = ()
    chosen: bool = True
    max_registers: int = 255
    max_shared_bytes: int = 164 * 1024 // 2
    max_loop_per_weight: float | None = None
    targets: tuple[int, ...] = (80, 90, 100)
    facts: dict[str, object] = field(default_factory=dict)


def operations() -> list[str]:
    """Names of all operations that have cases."""
    folder = Path(__file__).parent / "cases"
    return sorted(path.stem for path in folder.glob("[a-z]*.py"))


def value_cases(operation: str) -> list[ValueCase]:
    return list(import_module(f"hspec_kernels.cases.{operation}").VALUES)


def compile_cases(operation: str) -> list[CompileCase]:
    return list(import_module(f"hspec_kernels.cases.{operation}").COMPILED)


def rms_ratio(out: Tensor, reference: Tensor) -> float:
    """rms(out - reference) / rms(reference) in float64; infinite when `out` is not finite."""
    out, reference = out.double(), reference.double()
    if not torch.isfinite(out).all():
        return float("inf")
    scale = reference.square().mean().sqrt().clamp(min=1e-30)
    return float((out - reference).square().mean().sqrt() / scale)
