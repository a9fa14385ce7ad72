"""Tensors with buffers around them, and every address an interpreted kernel uses."""

import torch

# bytes on each side; a multiple of 16, by which kernels take tensors to be aligned
GUARD = 1 << 14
EMPTY = torch.empty


class Guards:
    """Tensors with buffers around them, to be looked at afterwards."""

    def __init__(self):
        self.buffers = []

    def new(self, *shape, dtype=None, device="cpu") -> torch.Tensor:
        """An unwritten tensor; as `torch.empty`."""
        size = torch.Size(shape[0] if isinstance(shape[0], tuple) else shape)
        dtype = dtype or torch.float32
        n_bytes = size.numel() * dtype.itemsize
        buffer = EMPTY(n_bytes + 2 * GUARD, dtype=torch.uint8, device=device)
        buffer.fill_(0xFF if dtype.is_floating_point else 0x7F)  # NaN, or large
        self.buffers.append(buffer)
        return buffer[GUARD : GUARD + n_bytes].view(dtype).view(size)

    def around(self, value):
        """The same tensor, or named tuple of them; anything else as it is."""
        if isinstance(value, torch.Tensor):
            return self.new(value.shape, dtype=value.dtype, device=value.device).copy_(value)
        return value._make(map(self.around, value)) if isinstance(value, tuple) else value

    def untouched(self) -> bool:
        """Whether all that was filled still is; a first byte changed as well would be no fill."""
        sides = [side for buffer in self.buffers for side in (buffer[:GUARD], buffer[-GUARD:])]
        return all(bool((side == side[0]).all()) and side[0] in (0xFF, 0x7F) for side in sides)

    def check(self, low: int, end: int) -> None:
        """AssertionError unless bytes low..end-1 lie inside one tensor."""
        inside = (
            buffer.data_ptr() + GUARD <= low and end <= buffer.data_ptr() + len(buffer) - GUARD
            for buffer in self.buffers
        )
        assert any(inside), f"{end - low} bytes outside every tensor, or across two"


def follow(guards: Guards, monkeypatch) -> None:
    """Check each address the interpreter loads from or stores to."""
    from triton.runtime.interpreter import InterpreterBuilder

    def checked(access, mask_at):
        def accessing(builder, pointers, *rest):
            wanted = pointers.data[rest[mask_at].data]
            if wanted.size:
                size = pointers.get_element_ty().primitive_bitwidth // 8
                guards.check(int(wanted.min()), int(wanted.max()) + size)
            return access(builder, pointers, *rest)

        return accessing

    for name, mask_at in (("create_masked_load", 0), ("create_masked_store", 1)):
        access = getattr(InterpreterBuilder, name)
        monkeypatch.setattr(InterpreterBuilder, name, checked(access, mask_at))


def same(a, b) -> bool:
    """Equal to the bit, NaN too."""
    if isinstance(a, tuple):
        return all(map(same, a, b))
    if not isinstance(a, torch.Tensor):
        return a == b
    return torch.equal(a.flatten().view(torch.uint8), b.flatten().view(torch.uint8))


def copied(value):
    """A copy of a tensor, or named tuple of them; anything else as it is."""
    if isinstance(value, tuple):
        return value._make(map(copied, value))
    return value.clone() if isinstance(value, torch.Tensor) else value
