"""What every linear layer here has in common, the row-by-row mode, and how rows are probed."""

import torch
from torch import Tensor


class Stored:
    """A weight matrix in one storage format; subclasses say how it is multiplied.

    Attributes:
        format: the scheme's name.
        nbytes: of the form that is stored, scales and zeros included.
        bytes_read: of what a product reads; more where an operator wants another layout.
    """

    __slots__ = ("format", "shape", "nbytes", "bytes_read", "device")

    def __init__(self, format: str, shape, nbytes: int, device, bytes_read: int | None = None):
        self.format, self.nbytes, self.shape = format, nbytes, tuple(shape)
        self.bytes_read = nbytes if bytes_read is None else bytes_read
        self.device = torch.device(device)

    @property
    def effective_bits(self) -> float:
        """Stored bits per weight, scales and zeros included."""
        return 8 * self.nbytes / (self.shape[0] * self.shape[1])

    def __repr__(self) -> str:
        R, C = self.shape
        return f"<{type(self).__name__} {self.format} {C} -> {R}, {self.effective_bits:.3g} bits>"


class _Wrapped(Stored):
    """Another linear layer with something done around it."""

    __slots__ = ("inner",)

    def __init__(self, inner: Stored):
        super().__init__(inner.format, inner.shape, inner.nbytes, inner.device, inner.bytes_read)
        self.inner = inner

    def dequantized(self) -> Tensor:
        return self.inner.dequantized()


class Biased(_Wrapped):
    """y = inner(x) + bias, the sum in fp32. The bias is not counted in `nbytes`."""

    __slots__ = ("bias",)

    def __init__(self, inner: Stored, bias: Tensor):
        super().__init__(inner)
        self.bias = bias

    def __call__(self, x: Tensor) -> Tensor:
        return self.inner(x).add_(self.bias)


class RowByRow(_Wrapped):
    """One call per row: row-invariant by construction, and T times the price."""

    __slots__ = ()

    def __call__(self, x: Tensor) -> Tensor:
        inner = self.inner
        return torch.cat([inner(row) for row in x.split(1)])


# compared with all 128 rows at once; more rows than that are not promised
_MAX_ROWS = 128
_COUNTS = (1, 2, 3, 5, 7, 8, 12, 16, 17, 24, 31, 33, 48, 64, 96, 127)
_ALONE = (1, 6, 13, 32, 127)
# what the probe found, by operator, shape, device and number of threads
_found: dict[tuple, bool] = {}


def is_row_invariant(linear: Stored) -> bool:
    """Whether a row's bits stay the same whatever the number of rows beside it.

    Found by running the operator here on 1 to 128 rows and on single rows, and comparing bits: how
    a library splits its work depends on processor, shape and threads. It is remembered for those;
    evidence, not a proof.
    """
    while isinstance(linear, Biased):
        linear = linear.inner
    key = (repr(linear), linear.device, torch.get_num_threads())
    if key not in _found:
        _found[key] = _probe(linear)
    return _found[key]


def _probe(linear: Stored) -> bool:
    x = torch.randn(_MAX_ROWS, linear.shape[1], generator=torch.Generator().manual_seed(0))
    x = x.to(linear.device)
    together = linear(x)
    return all(torch.equal(linear(x[:n]), together[:n]) for n in _COUNTS) and all(
        torch.equal(linear(x[row : row + 1]), together[row : row + 1]) for row in _ALONE
    )
