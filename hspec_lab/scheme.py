"""How a model's numbers are stored and multiplied, as one value with one short name.

    w4a16-g128              4-bit weights with a scale and a zero per 128 inputs, 16-bit rows
    w4a16-g128-sym-kv4      the same without zeros, keys and values in 4 bits
    w8a8                    8-bit weights, a scale per output; rows rounded to 8 bits each
    w4a8-g128               QoQ's two levels: 4-bit codes that stand for 8-bit integers
    mxfp4, nf4, fp8a16      other grids of weights, 16-bit rows; fp8: rows in e4m3 too
    bitstack-6.5mb          weights as a stack of 1-bit layers, cut to a size
    fp32, w16a16            nothing rounded; what a CPU and what a GPU computes in

A name is `w<bits>a<bits>` or a grid, then any of `-g<inputs of a group>`, `-sym` or `-zp`,
`-kv<bits>`, `-head<bits>` (the output layer), `-emb<bits>` (the embedding), in this order.  What is
not said: a group is the whole row; weights below 8 bits have zeros where rows have 16 bits; keys,
values and embedding keep 16 bits; the output layer keeps at least 8 bits, because it is small and
its errors are seen at once.

What algorithms chose the weights is `hspec_lab.formats`' business.
"""

import math
import re
from dataclasses import dataclass, replace
from decimal import Decimal

WEIGHT_BITS = (16, 8, 6, 4, 3, 2)
ROW_BITS = (16, 8, 4)
KV_BITS = (16, 8, 4, 2)
GROUPS = (32, 64, 128)
# what a name without w<bits> says: grid, bits, rows, inputs that share a scale (None: a whole row)
_GRIDS = {
    "fp32": ("float", 32, 32, None),
    "mxfp4": ("mxfp4", 4, 16, 32),
    "nf4": ("nf4", 4, 16, 64),
    "fp8": ("e4m3", 8, 8, None),
    "fp8a16": ("e4m3", 8, 16, None),
    "bitstack": ("bitstack", 2, 16, None),
}
_NAME = re.compile(
    r"(?:(?P<grid>fp32|mxfp4|nf4|fp8a16|fp8)|bitstack-(?P<mb>\d+(?:\.\d+)?)mb"
    r"|w(?P<w>\d+)(?:a(?P<a>\d+))?)"
    r"(?:-g(?P<g>\d+))?(?:-(?P<zero>sym|zp))?"
    r"(?:-kv(?P<kv>\d+))?(?:-head(?P<head>\d+))?(?:-emb(?P<emb>\d+))?"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scheme:
    """What is stored in how many bits; `str` gives the name that `parse` reads.

    Attributes:
        grid: int, float (nothing rounded), mxfp4, nf4, e4m3 or bitstack.
        bits: of a weight's code; 32 for fp32.
        rows: bits of the activations that meet the weights; 32 for fp32.
        group: inputs that share a scale; None: all of a row.
        zero: whether groups have a zero of their own.
        kv: bits of keys and values.
        head: bits of the output layer; None: as the weights, but at least 8.
        embedding: bits of the embedding.
        megabytes: the size of a bitstack, 10**6 bytes.

    Raises:
        ValueError: values that contradict each other.
    """

    grid: str = "int"
    bits: int = 16
    rows: int = 16
    group: int | None = None
    zero: bool = False
    kv: int = 16
    head: int | None = None
    embedding: int = 16
    megabytes: float | None = None

    def __post_init__(self):
        if problem := self._problem():
            raise ValueError(f"{self}: {problem}")

    def _problem(self) -> str | None:
        head = 8 if self.head is None else self.head
        one_of = [
            ("keys and values have", self.kv, KV_BITS),
            ("the output layer has", head, WEIGHT_BITS),
            ("the embedding has", self.embedding, (16, 8, 4)),
        ]
        named = (self.grid, self.bits, self.rows, self.group) in _GRIDS.values()
        if not named:
            one_of += [("weights have", self.bits, WEIGHT_BITS), ("rows have", self.rows, ROW_BITS)]
        for what, bits, known in one_of:
            if bits not in known:
                return f"{what} {', '.join(map(str, known))} bits, not {bits}"
        if self.grid == "bitstack" and not (self.megabytes and 0 < self.megabytes < math.inf):
            return f"a stack is cut to a size above 0 MB, not {self.megabytes}"
        if self.grid != "bitstack" and self.megabytes is not None:
            return "only a bitstack is cut to a size"
        if self.grid == "int":
            return self._problem_of_integers()
        if self.grid == "float" and self.group is not None:
            return f"{self.bits}-bit weights are not rounded: leave out -g{self.group}"
        if self.grid == "float" and self.rows < 16:
            return f"rows of {self.rows} bits need weights of at most 8"
        # unreachable from a name
        if self.zero or not (named or (self.grid, self.bits, self.rows) == ("float", 16, 16)):
            return f"no grid {self.grid!r} has such bits, groups and zeros"
        return None

    def _problem_of_integers(self) -> str | None:
        if self.bits == 16:
            return "16-bit weights are not rounded: their grid is float"
        if self.group not in (None, *GROUPS):
            return f"groups are of {', '.join(map(str, GROUPS))} inputs or a row, not {self.group}"
        return self._problem_of_integer_rows() if self.rows < 16 else None

    def _problem_of_integer_rows(self) -> str | None:
        if self.zero:
            return f"weights that meet rows of {self.rows} bits are symmetric: leave out -zp"
        if self.group and (self.bits, self.rows) != (4, 8):
            return (
                f"integer sums over groups need two levels of scales, which w4a8 has: "
                f"leave out -g{self.group}"
            )
        return None

    @property
    def two_levels(self) -> bool:
        """Whether groups have integer scales within a row's own."""
        return self.grid == "int" and self.rows == 8 and self.group is not None

    @property
    def rounds(self) -> bool:
        """Whether any weight is rounded."""
        return self.grid != "float"

    @property
    def weights(self) -> "Scheme":
        """The same for decoder layers alone: nothing said of cache, output layer or embedding."""
        return replace(self, kv=16, head=None, embedding=16)

    @property
    def output(self) -> "Scheme":
        """How the output layer is stored."""
        if self.head is None and (self.bits >= 8 or self.grid == "float"):
            return self.weights
        bits = self.head or 8
        if bits == 16:
            return FP32 if self.rows == 32 else Scheme(grid="float", bits=16)
        rows = min(self.rows, 16)
        if rows < 16:
            return Scheme(bits=bits, rows=8)
        if bits == 8:
            return Scheme(bits=8)
        group = self.group if self.grid == "int" else None
        return Scheme(bits=bits, group=group or 128, zero=True)

    def __str__(self) -> str:
        named = {"float": f"w{self.bits}a{self.rows}", "int": f"w{self.bits}a{self.rows}"}
        named["e4m3"] = "fp8" if self.rows == 8 else "fp8a16"
        # every digit and no exponent, so that `parse` reads the same size
        size = f"{Decimal(repr(self.megabytes or 0.0)):f}"
        named["bitstack"] = f"bitstack-{size.removesuffix('.0')}mb"
        name = "fp32" if self.bits == 32 else named.get(self.grid, self.grid)
        if self.grid in ("int", "float") and self.group is not None:
            name += f"-g{self.group}"
        if self.grid == "int" and self.zero != _has_zero(self.bits, self.rows):
            name += "-zp" if self.zero else "-sym"
        name += "" if self.kv == 16 else f"-kv{self.kv}"
        name += "" if self.head is None else f"-head{self.head}"
        return name + ("" if self.embedding == 16 else f"-emb{self.embedding}")


def _has_zero(bits: int, rows: int) -> bool:
    """Whether integers of so many bits have zeros when nothing is said."""
    return bits < 8 and rows == 16


FP32 = Scheme(grid="float", bits=32, rows=32)


def parse(name: str) -> Scheme:
    """The scheme that a name stands for.

    Raises:
        ValueError: not a name, or one that contradicts itself.
    """
    found = _NAME.fullmatch(name) if isinstance(name, str) else None
    if not found:
        raise ValueError(
            f"unknown format {name!r}; a format is fp32, w16a16, fp8, fp8a16, mxfp4, nf4, "
            "bitstack-<size>mb or w<bits>a<bits>, then -g<inputs>, -sym or -zp, -kv<bits>, "
            "-head<bits>, -emb<bits>, such as w4a16-g128 or w8a8"
        )
    try:
        return _scheme_of(found.groupdict())
    except ValueError as problem:
        # the name as it came, not as it would be written
        raise ValueError(f"{name}: {str(problem).partition(': ')[2]}") from None


def _scheme_of(part: dict) -> Scheme:
    """Parts of a name, None where nothing is said -> the scheme; ValueError `<name>: <problem>`."""
    more = {"kv": int(part["kv"] or 16), "embedding": int(part["emb"] or 16)}
    more["head"] = None if part["head"] is None else int(part["head"])
    group = None if part["g"] is None else int(part["g"])
    if part["w"] is None:
        return _named_grid(part, group, more)
    bits, rows = int(part["w"]), int(part["a"] or 16)
    if bits >= 16:
        if part["zero"]:
            raise ValueError(
                f"w{bits}: {bits}-bit weights are not rounded: leave out -{part['zero']}"
            )
        return Scheme(grid="float", bits=bits, rows=rows, group=group, **more)
    zero = part["zero"] == "zp" if part["zero"] else _has_zero(bits, rows)
    return Scheme(bits=bits, rows=rows, group=group, zero=zero, **more)


def _named_grid(part: dict, group: int | None, more: dict) -> Scheme:
    name = part["grid"] or "bitstack"
    told = f"-{part['zero']}" if group is None else f"-g{group}"
    if group is not None or part["zero"]:
        fixed = f"groups and zeros of {name} are fixed"
        what = "32-bit weights are not rounded" if name == "fp32" else fixed
        raise ValueError(f"{name}: {what}: leave out {told}")
    megabytes = float(part["mb"]) if part["mb"] else None
    grid, bits, rows, group = _GRIDS[name]
    fixed = {"grid": grid, "bits": bits, "rows": rows, "group": group, "megabytes": megabytes}
    return Scheme(**fixed, **more)


def has_operator(scheme: Scheme) -> bool:
    """Whether PyTorch has an operator on CPUs for weights and rows of a scheme."""
    if scheme.grid == "float":
        return scheme.bits == 32
    return scheme.grid in ("int", "mxfp4")
