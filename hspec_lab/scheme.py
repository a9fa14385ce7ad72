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

A format adds to a scheme how its weights were chosen and run:

    w4a16-g128+gptq             by an algorithm, see ALGORITHMS; nothing said: rounded to nearest
    w4a16-g128+quarot+gptq      a transform of the model first
    nf4+reference               by the definition in plain torch, where no operator multiplies it
"""

import math
import re
from dataclasses import dataclass, replace
from decimal import Decimal
from functools import cache

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
# what is done before weights are rounded, what decides bits per layer, what rounds; one line each
TRANSFORMS = {
    "quarot": "the residual stream rotated by a Hadamard matrix, and the draft head with it",
    "smooth": "SmoothQuant: loud input channels moved into the weights",
    "smoothattn": "QoQ's SmoothAttention: loud key channels moved into the queries",
    "awqscale": "AWQ's search: input channels scaled by a power of their mean magnitude",
}
ALLOCATIONS = {
    "lim": "bits by layer, by how much a layer turns its rows",
    "zd": "bits by layer, by the share of weights beyond one standard deviation",
    "evopress": "bits by unit, by evolutionary search on the divergence from the 16-bit model",
}
ROUNDERS = {
    "gptq": "column by column, each error pushed onto the columns to come",
    "clip": "ranges of groups clipped where the output gains",
    "hqq": "half-quadratic solver of the zeros, no data",
    "finequant": "groups as fine as a matrix needs",
    "adadim": "groups along inputs or outputs, whichever errs less",
    "svdquant": "a low-rank branch in 16 bits, the rest rounded",
}
# short names of combinations
RECIPES = {"awq": ("awqscale", "clip"), "qoq": ("quarot", "smoothattn", "gptq")}
ALGORITHMS = (
    TRANSFORMS
    | ALLOCATIONS
    | ROUNDERS
    | {
        "awq": "AWQ: awqscale and clip",
        "qoq": "QoQ: quarot, smoothattn and gptq; made for w4a8-g128-kv4",
    }
)
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


@dataclass(frozen=True, slots=True)
class Format:
    """A scheme, the algorithms that chose its weights, and whether its definition runs it.

    `str` gives the name that `Format.parse` reads: algorithms in the order they are applied.
    """

    scheme: Scheme
    algorithms: tuple[str, ...] = ()
    reference: bool = False

    def __post_init__(self):
        if problem := self._problem():
            raise ValueError(f"{self}: {problem}")

    def _problem(self) -> str | None:
        if len(set(self.steps)) < len(self.steps):
            return f"an algorithm is applied twice: {', '.join(self.steps)}"
        if not self.scheme.rounds or self.scheme.grid == "bitstack":
            told = "a stack has a solver of its own" if self.scheme.rounds else "nothing is rounded"
            for name in self.algorithms:
                if not set(_steps(name)) <= set(TRANSFORMS):
                    return f"{told}, so leave out +{name}"
        for kind, known in (("rounding", ROUNDERS), ("allocation", ALLOCATIONS)):
            found = [name for name in self.algorithms if not known.keys().isdisjoint(_steps(name))]
            if len(found) > 1:
                return f"one {kind} at most, got {' and '.join(found)}"
        for needs, allowed, names in (
            ("weights with zeros", self.scheme.zero, "hqq"),
            ("integer weights with 16-bit rows", self._plain_integers, "finequant lim zd evopress"),
            ("groups along inputs", self.scheme.group and not self.scheme.two_levels, "adadim"),
        ):
            for step in self.steps:
                if step in names.split() and not allowed:
                    return f"{step} needs {needs}, which {self.scheme} has not"
        return None

    @property
    def _plain_integers(self) -> bool:
        return self.scheme.grid == "int" and self.scheme.rows == 16

    @property
    def steps(self) -> tuple[str, ...]:
        """The algorithms, short names of combinations spelled out."""
        return tuple(step for name in self.algorithms for step in _steps(name))

    @property
    def is_made(self) -> bool:
        """Whether weights come from a quantized folder rather than from rounding to nearest."""
        return bool(self.algorithms) or self.scheme.grid == "bitstack"

    @property
    def rotates(self) -> bool:
        return "quarot" in self.steps

    def __str__(self) -> str:
        return "+".join((str(self.scheme), *self.algorithms, *["reference"] * self.reference))

    @classmethod
    def parse(cls, name: str) -> "Format":
        """The format that a name stands for.

        Raises:
            ValueError: an unknown scheme or algorithm, or some that contradict each other.
        """
        if not isinstance(name, str):
            raise ValueError(f"a format is a name such as w4a16-g128, got {name!r}")
        return _parsed(name)


def _steps(name: str) -> tuple[str, ...]:
    """A combination spelled out; any other algorithm itself."""
    return RECIPES.get(name, (name,))


@cache
def _parsed(name: str) -> Format:
    first, *more = name.split("+")
    reference = "reference" in more
    algorithms = tuple(step for step in more if step != "reference")
    for step in algorithms:
        if step not in ALGORITHMS:
            raise ValueError(
                f"unknown algorithm {step!r} in {name!r}; known: {', '.join(ALGORITHMS)}; "
                "and reference"
            )
    if more.count("reference") > 1:
        raise ValueError(f"{name}: reference is said twice")
    scheme = parse(first)
    try:
        return Format(scheme, algorithms, reference)
    except ValueError as problem:
        raise ValueError(f"{name}: {str(problem).partition(': ')[2]}") from None
