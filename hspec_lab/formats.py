"""How a model's weights were chosen and are run: a scheme, algorithms, and whether by definition.

    w4a16-g128                  rounded to nearest
    w4a16-g128+gptq             chosen by an algorithm
    w4a16-g128+quarot+gptq      a transform of the model first
    w3a16-g128+evopress+gptq    bits decided unit by unit, 3 on average, then rounded
    nf4+reference               run by the definition in plain torch, as no operator multiplies it

Names come in the order of the work: transforms, then one allocation of bits, then one rounding.
"""

from dataclasses import dataclass
from functools import cache

from hspec_lab.scheme import Scheme, parse

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
        in_order = sorted(self.algorithms, key=_turn)
        if list(self.algorithms) != in_order:
            return f"transforms come first, rounding last: write +{'+'.join(in_order)}"
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


def _turn(name: str) -> int:
    """When an algorithm's work is done: transforms first, then allocations, then rounding."""
    kinds = (TRANSFORMS, ALLOCATIONS, ROUNDERS)
    return max(i for i, kind in enumerate(kinds) for step in _steps(name) if step in kind)


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
