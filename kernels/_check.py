"""What every wrapper asks of its tensors; each refusal says what came and what is needed."""

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


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
