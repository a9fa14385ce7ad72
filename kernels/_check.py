"""What every wrapper asks of its tensors; each refusal says what came and what is needed.

`check_tensor` and `check_range` look at what the host knows: dtype, shape, device, strides and
numbers.  The others look into a tensor, which has to wait for the device: wrappers skip them when
the caller says `trusted=True`, as one must inside a CUDA graph.
"""

import torch
from torch import Tensor

HALF = (torch.float16, torch.bfloat16)


def check_tensor(name: str, tensor: Tensor, dtypes, shape, like: Tensor | None = None) -> None:
    """ValueError unless `tensor` is contiguous, of one of `dtypes`, and of `shape`.

    Args:
        dtypes: one dtype or a tuple of them.
        shape: expected sizes; None where any size will do.
        like: a tensor whose device it must be on.
    """
    if not isinstance(tensor, Tensor):
        raise ValueError(f"{name} must be a tensor, got {type(tensor).__name__}")
    dtypes = dtypes if isinstance(dtypes, tuple) else (dtypes,)
    if tensor.dtype not in dtypes:
        wanted = " or ".join(_name(dtype) for dtype in dtypes)
        raise ValueError(f"{name} must be {wanted}, got {_name(tensor.dtype)}")
    fits = tensor.ndim == len(shape) and all(
        want is None or have == want for have, want in zip(tensor.shape, shape, strict=True)
    )
    if not fits:
        wanted = ", ".join("any" if size is None else str(size) for size in shape)
        raise ValueError(f"{name} must be [{wanted}], got {list(tensor.shape)}")
    if not tensor.is_contiguous():
        raise ValueError(f"{name} must be contiguous, got strides {list(tensor.stride())}")
    if like is not None and tensor.device != like.device:
        raise ValueError(f"{name} must be on {like.device}, got {tensor.device}")


def check_range(name: str, value: int, low: int, high: int) -> None:
    """ValueError unless low <= value <= high."""
    if not low <= value <= high:
        raise ValueError(f"{name} must be {low}..{high}, got {value}")


def check_parents(parents: Tensor, name: str = "parents") -> None:
    """ValueError unless every entry of int32 [n] lies before its own place or is -1."""
    place = torch.arange(len(parents), device=parents.device)
    refuse(
        (parents < -1) | (parents >= place),
        lambda i: f"{name}[{i}] must be -1..{i - 1}, got {int(parents[i])}",
    )


def check_ancestors(ancestors: Tensor, T: int) -> None:
    """ValueError unless int64 [T, W] bitsets are those of a tree whose parents come first."""
    row, column = (torch.arange(n, device=ancestors.device) for n in (T, 64 * ancestors.shape[1]))
    seen = (ancestors[:, column // 64] >> (column % 64)) & 1 == 1  # [T, 64 * W]
    above = seen & (column < row[:, None])
    later = (seen & (column > row[:, None])).any(dim=1)
    # the nearest is the parent, and what is above it is above its child too; no parent: nothing
    parent = torch.where(above, column, -1).amax(dim=1)  # [T]
    wanted = seen[parent.clamp(min=0)] & (parent >= 0)[:, None]
    bad = later | ~seen[row, row] | (above != wanted).any(dim=1)

    def message(t: int) -> str:
        have = seen[t].nonzero().flatten().tolist()
        if later[t] or not seen[t, t]:
            return f"ancestors of row {t} must be {t} and rows before it, got {have}"
        rest = wanted[t].nonzero().flatten().tolist()
        return f"ancestors of row {t} must be those of its parent and {t}, {[*rest, t]}, got {have}"

    refuse(bad, message)


def check_room(kv_len: Tensor, rows: int, capacity: int) -> int:
    """kv_len, int32 [1]; ValueError unless so many rows fit behind it."""
    n = int(kv_len)
    if not 0 <= n <= capacity - rows:
        raise ValueError(
            f"kv_len must be 0..{capacity - rows} for {rows} rows in a cache of {capacity}, got {n}"
        )
    return n


def check_below(name: str, values: Tensor, end: int, why: str) -> None:
    """ValueError unless every entry of [n] is 0..end-1, with what the end follows from."""
    refuse(
        (values < 0) | (values >= end),
        lambda i: f"{name}[{i}] must be 0..{end - 1} {why}, got {int(values[i])}",
    )


def check_uniforms(uniforms: Tensor) -> None:
    """ValueError unless every entry of fp32 [n] is in [0, 1)."""
    refuse(
        ~((uniforms >= 0) & (uniforms < 1)),
        lambda i: f"uniforms[{i}] must be in [0, 1), got {float(uniforms[i])}",
    )


def refuse(bad: Tensor, message) -> None:
    """ValueError with `message(i)` of the first true entry of `bad` [n]."""
    if bad.any():
        raise ValueError(message(int(bad.int().argmax())))


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
