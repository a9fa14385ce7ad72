"""The gate of an MLP: silu of one half of the columns times the other half.

    y[t, i] = g / (1 + exp(-g)) * gate_up[t, I + i],    g = gate_up[t, i]

One matrix makes gate and up projection together, side by side; this joins them.  It is bound by
memory and would be three passes in plain torch.

    reference   silu_mul_ref  plain torch, any device; the definition
    kernel      silu_mul      Triton, CUDA (or CPU under TRITON_INTERPRET=1)
    cost        reads 2 * T * I values, writes T * I; one launch
    error       computed in fp32, one rounding: half a step of the dtype
    rows        each value on its own: row-invariant
    source      Shazeer 2020, arXiv 2002.05202 (SwiGLU)
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from hspec_kernels._check import HALF, check_range, check_tensor


def silu_mul_ref(gate_up: Tensor) -> Tensor:
    """Same contract as `silu_mul`, in float64, written to be read rather than to be fast."""
    gate, up = gate_up.double().chunk(2, dim=1)
    return (gate * torch.sigmoid(gate) * up).to(gate_up.dtype)


def silu_mul(gate_up: Tensor, *, out: Tensor | None = None) -> Tensor:
    """Multiply silu(gate) with up.

    Args:
        gate_up: fp16 or bf16 [T, 2 * I], gates first; T >= 1, I >= 1.
        out: gate_up's dtype [T, I], written instead of a new tensor.

    Returns:
        y: gate_up's dtype [T, I].

    Raises:
        ValueError: a dtype, shape, device or stride that does not fit the above.
    """
    check_tensor("gate_up", gate_up, HALF, (None, None))
    T, width = gate_up.shape
    check_range("T", T, 1, 2**30)
    check_range("I", width // 2, 1, 2**25)
    if width % 2:
        raise ValueError(f"gate_up must be [T, 2 * I], got {list(gate_up.shape)}")
    I = width // 2  # noqa: E741
    if out is None:
        out = torch.empty(T, I, dtype=gate_up.dtype, device=gate_up.device)
    check_tensor("out", out, gate_up.dtype, (T, I), like=gate_up)
    block_i, num_warps = CONFIGS[0]
    grid = (T, triton.cdiv(I, block_i))
    _silu_mul_kernel[grid](gate_up, out, I, BLOCK_I=block_i, num_warps=num_warps)
    return out


# columns of a program and its warps, not swept on a GPU yet: 16 bytes a thread
CONFIGS = ((1024, 4),)


@triton.jit
def _silu_mul_kernel(
    gate_up_ptr,  # [T, 2 * I]
    y_ptr,  # [T, I]
    I,  # noqa: E741
    BLOCK_I: tl.constexpr,
):
    # int64: a long prompt of a wide model passes 2**31 values
    row = tl.program_id(0).to(tl.int64) * I
    i = tl.program_id(1) * BLOCK_I + tl.arange(0, BLOCK_I)
    gate_at = gate_up_ptr + 2 * row + i
    gate = tl.load(gate_at, mask=i < I, other=0.0).to(tl.float32)
    up = tl.load(gate_at + I, mask=i < I, other=0.0).to(tl.float32)
    y = gate / (1.0 + tl.exp(-gate)) * up
    tl.store(y_ptr + row + i, y.to(y_ptr.dtype.element_ty), mask=i < I)
