"""What an experiment is: frozen values with visible defaults, one id per distinct config.

    Config(
        target="zoo:target@w4a16-g128",
        draft=Refine("zoo:intermediate@w8a8", Eagle2(tree_size=24, depth=4, top_k=8), at_least=6),
    )

A model is written `where@format`: a folder or `zoo:name`, and how its weights are stored (see
`scheme`).
A drafter is one of four values, and they nest: `Eagle2` (a draft head on the model it drafts
for), `Static` (the same head, the same tree in every round), `Refine` (a smaller model turns
another drafter's tree into a sequence of its own) and `Chain` (a smaller model drafts a sequence
by itself).  A value's `repr` is the code that makes it.
"""

import dataclasses
import hashlib
import json
from dataclasses import dataclass

from hspec_lab.formats import Format
from hspec_lab.scheme import has_operator

# formats to choose from: those a CPU multiplies (see `quant`), those the project's kernels do (see
# `quant.device`), and both; a CPU takes many more, see `scheme`
CPU_FORMATS = ("fp32", "w8a16", "w8a8", "w4a16-g128", "w4a16-g32")
_DEVICE_ONLY = ("w16a16", "fp8", "w4a8-g128", "w3a16-g128", "w2a16-g64")
DEVICE_FORMATS = CPU_FORMATS[1:] + _DEVICE_ONLY
FORMATS = CPU_FORMATS + _DEVICE_ONLY
# algorithms whose forms are not one scheme's: no kernel, and of the first no operator of a CPU's
_OWN_FORMS = ("adadim", "svdquant", "finequant", "lim", "zd", "evopress")
# what a menu offers on a CPU: the above, more schemes, and every algorithm at a scheme it suits
MENU = CPU_FORMATS + (
    "w6a16-g128",
    "w3a16-g128",
    "w2a16-g32",
    "mxfp4",
    "w4a8-g128",
    "w4a16-g128-kv4",
    "w4a16-g128-head4-emb8",
    "w4a16-g128+gptq",
    "w4a16-g128+awq",
    "w4a16-g128+awqscale+gptq",
    "w4a16-g128+hqq",
    "w4a16-g32+finequant",
    "w4a16-g128+svdquant",
    "w4a16-g128+quarot+gptq",
    "w4a16-g128+adadim+reference",
    "w3a16-g128+gptq",
    "w3a16-g128+lim+gptq",
    "w3a16-g128+zd+gptq",
    "w3a16-g128+evopress+gptq",
    "w8a8+smooth",
    "w8a8+quarot+smoothattn",
    "w4a8-g128-kv4+qoq",
    "bitstack-6mb+reference",
    "nf4+reference",
    "fp8a16+reference",
)
MAX_TREE_SIZE = 1024


def _at_least_one(owner: str, name: str, value: int, at_most: int | None = None) -> None:
    if type(value) is not int or value < 1 or (at_most and value > at_most):
        wanted = f"1..{at_most}" if at_most else ">= 1"
        raise ValueError(f"{owner}: {name} must be {wanted}, got {value!r}")


def _is_text(value) -> bool:
    try:
        return isinstance(value, str) and bool(value.encode())
    except UnicodeEncodeError:  # half of a surrogate pair
        return False


def check_format(name: str, device: str | None = None) -> str:
    """Return the short name of a format, one that `device` multiplies.

    Args:
        name: a scheme and its algorithms, see `scheme`.
        device: cpu, cuda, cuda:1, ...; None: any will do.

    Raises:
        ValueError: unknown, contradicting itself, or without a fast operator there.
    """
    format = Format.parse(name)
    on_cpu, on_device = _problem_on_cpu(format), _problem_on_device(format)
    problem = None if device is None else on_cpu if device == "cpu" else on_device
    if problem is None:
        return str(format)
    known = ", ".join(CPU_FORMATS if device == "cpu" else DEVICE_FORMATS)
    if device == "cpu":
        known += f", or {name}+reference" + (", or device='cuda'" if on_device is None else "")
    elif on_cpu is None:
        known += ", or device='cpu'"
    raise ValueError(f"{name} has no fast operator on {device}{problem}; formats with one: {known}")


def _problem_on_cpu(format: Format) -> str | None:
    """What no operator does, in words; none are needed where it is the weights as a whole."""
    scheme = format.scheme
    if format.reference:
        return None
    if "adadim" in format.steps:
        return " (adadim's groups along outputs)"
    if has_operator(scheme) and has_operator(scheme.output):
        return None
    return f" (its output layer, {scheme.output})" if has_operator(scheme) else ""


def _problem_on_device(format: Format) -> str | None:
    """What no kernel does, in words; none are needed where it is the weights as a whole."""
    scheme = format.scheme
    if format.reference or str(scheme.weights) not in DEVICE_FORMATS:
        return ""
    if str(scheme.output) not in DEVICE_FORMATS:
        return f" (its output layer, {scheme.output})"
    if own := [step for step in format.steps if step in _OWN_FORMS]:
        return f" ({', '.join(own)})"
    if scheme.kv not in (16, 8):
        return f" (keys and values of {scheme.kv} bits)"
    return " (its embedding)" if scheme.embedding < 16 else None


def split_model(reference: str) -> tuple[str, str]:
    """Split `where@format` into folder (or `zoo:name`) and format; fp32 when none is given."""
    where, _, format = str(reference).rpartition("@")
    if not where or "/" in format:  # an @ in a folder's name is not ours
        where, format = str(reference), ""
    if not isinstance(reference, str) or not where or where.startswith("@"):
        raise ValueError(
            f"a model is written 'folder@format' or 'zoo:name@format', got {reference!r}"
        )
    return where, check_format(format or "fp32")


def _check_head_format(name: str) -> None:
    """ValueError for what a draft head has not: algorithms, and layers it shares with its model."""
    format = Format.parse(name)
    if format.is_made:
        raise ValueError(
            f"Eagle2: a draft head is rounded to nearest, its format is a scheme alone, got {name}"
        )
    if format.scheme != format.scheme.weights:
        raise ValueError(
            "Eagle2: a draft head reads its model's embedding and output layer and keeps its cache "
            f"in 16 bits: {format.scheme.weights} says all there is, got {name}"
        )


@dataclass(frozen=True, slots=True)
class Eagle2:
    """An EAGLE-2 head that grows a dynamic tree for the model it drafts for.

    `tree_size` counts the root; `depth` counts levels below it.
    """

    tree_size: int = 24
    depth: int = 4
    top_k: int = 8
    head: str | None = None  # `folder@format`; None: the head that ships beside the model, fp32

    def __post_init__(self):
        _at_least_one("Eagle2", "tree_size", self.tree_size, MAX_TREE_SIZE)
        _at_least_one("Eagle2", "depth", self.depth, 64)
        _at_least_one("Eagle2", "top_k", self.top_k, 256)
        if self.head is not None:
            _check_head_format(split_model(self.head)[1])


@dataclass(frozen=True, slots=True)
class Static:
    """An EAGLE-2 head that fills one given tree in every round.

    Node i hangs below node `parents[i]` and holds the token that the head finds most probable
    there (place 0), second (1), ...: `places[i]`.  Node 0 is the root, -1 in both.
    """

    parents: tuple[int, ...]
    places: tuple[int, ...]
    head: str | None = None  # as `Eagle2.head`

    def __post_init__(self):
        for name in ("parents", "places"):
            value = getattr(self, name)
            if not isinstance(value, tuple | list) or not all(type(x) is int for x in value):
                raise ValueError(f"Static: {name} must be a tuple of int, got {value!r}")
            object.__setattr__(self, name, tuple(value))
        _check_nodes(self.parents, self.places)
        if self.head is not None:
            _check_head_format(split_model(self.head)[1])

    @property
    def tree_size(self) -> int:
        """Nodes, the root included."""
        return len(self.parents)

    @property
    def depths(self) -> tuple[int, ...]:
        """Levels below the root, by node."""
        return node_depths(self.parents)

    @property
    def depth(self) -> int:
        """Levels below the root."""
        return max(self.depths)

    @property
    def top_k(self) -> int:
        """Children of one node to look at."""
        return max(1, max(self.places) + 1)


def node_depths(parents: tuple[int, ...]) -> tuple[int, ...]:
    """Levels below the root of each node of a tree, parents first."""
    depths = [0]
    for parent in parents[1:]:
        depths.append(depths[parent] + 1)
    return tuple(depths)


def _check_nodes(parents: tuple[int, ...], places: tuple[int, ...]) -> None:
    """ValueError when a static tree's nodes are no tree, or two siblings share a place."""
    if len(parents) != len(places) or (parents[:1], places[:1]) != ((-1,), (-1,)):
        raise ValueError(
            "Static: parents and places are equally long and begin with -1, the root's, got "
            f"{len(parents)} and {len(places)}: {parents[:4]} and {places[:4]}"
        )
    _at_least_one("Static", "tree_size", len(parents), MAX_TREE_SIZE)
    taken = set()
    for node, (parent, place) in enumerate(zip(parents[1:], places[1:], strict=True), 1):
        if not 0 <= parent < node:
            raise ValueError(f"Static: node {node} must come after its parent, got {parent}")
        if not 0 <= place < 256:
            raise ValueError(f"Static: node {node} must have a place 0..255, got {place}")
        if (parent, place) in taken:
            raise ValueError(f"Static: node {node} is place {place} of node {parent} once more")
        taken.add((parent, place))
    if (depth := max(node_depths(parents))) > 64:
        raise ValueError(f"Static: depth must be 0..64, got {depth}")


@dataclass(frozen=True, slots=True)
class Chain:
    """A smaller model drafts `draft_len` tokens in a row."""

    model: str
    draft_len: int = 6

    def __post_init__(self):
        split_model(self.model)
        _at_least_one("Chain", "draft_len", self.draft_len, MAX_TREE_SIZE - 1)


@dataclass(frozen=True, slots=True)
class Refine:
    """A smaller model verifies another drafter's trees until it has `at_least` tokens of its own.

    `sampling` only matters at temperature > 0: "sample" lets the model draw its tokens and hand up
    the distributions they came from, "greedy" lets it propose its most likely ones.

    `tree_size` makes a narrow tree of the sequence: rows that are left up to so many, the root
    included, offer the model's second choices where it was least sure.  Kernels work in tiles of
    16 rows, so up to 16 cost what the sequence costs.  None: the sequence alone, as published.
    """

    model: str
    draft: "Drafting"
    at_least: int = 6
    sampling: str = "sample"
    tree_size: int | None = None

    def __post_init__(self):
        split_model(self.model)
        _at_least_one("Refine", "at_least", self.at_least, MAX_TREE_SIZE - 1)
        if not isinstance(self.draft, Drafting):
            raise ValueError(f"Refine: draft must be {_DRAFTERS}, got {self.draft!r}")
        if self.sampling not in ("sample", "greedy"):
            raise ValueError(f"Refine: sampling must be sample or greedy, got {self.sampling!r}")
        if self.tree_size is not None:
            _at_least_one("Refine", "tree_size", self.tree_size, MAX_TREE_SIZE)


HeadDraft = Eagle2 | Static
Drafting = HeadDraft | Chain | Refine
_DRAFTERS = "Eagle2, Chain or Refine (or a Static tree)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """One experiment: which models, how they draft, on which prompts."""

    target: str = "zoo:target@fp32"
    draft: Drafting | None = None  # None: plain autoregressive decoding
    prompts: tuple[str, ...] = ()  # empty: the held-out prompts that ship with the zoo
    n_prompts: int = 8  # how many of the shipped prompts
    max_new_tokens: int = 128
    temperature: float = 0.0  # 0 is greedy
    seed: int = 0
    stop: tuple[str, ...] = ()  # text that ends the output; it is cut off
    row_invariant: bool = False  # the same bits for a row whatever is computed beside it; slower
    threads: int = 2
    device: str = "cpu"

    def __post_init__(self):
        split_model(self.target)
        if self.draft is not None and not isinstance(self.draft, Drafting):
            raise ValueError(f"draft must be None, {_DRAFTERS}, got {self.draft!r}")
        for name in ("n_prompts", "max_new_tokens", "threads"):
            _at_least_one("Config", name, getattr(self, name))
        for name in ("prompts", "stop"):
            value = getattr(self, name)
            if not isinstance(value, tuple | list) or not all(map(_is_text, value)):
                raise ValueError(f"{name} must be a tuple of non-empty texts, got {value!r}")
            object.__setattr__(self, name, tuple(value))
        heat = self.temperature
        if type(heat) not in (int, float) or not (heat == 0 or 1e-3 <= heat <= 10):
            raise ValueError(f"temperature must be 0 (greedy) or 0.001 .. 10, got {heat!r}")
        object.__setattr__(self, "temperature", float(heat))
        if heat and any(value.tree_size and value.sampling == "sample" for value in self.refines):
            raise ValueError(
                "Refine: tree_size offers second choices, which are not drawn; at temperature "
                f'{heat:g} it needs sampling="greedy"'
            )
        if type(self.seed) is not int or not 0 <= self.seed < 2**63:
            raise ValueError(f"seed must be a whole number 0 .. 2**63 - 1, got {self.seed!r}")
        if not isinstance(self.row_invariant, bool):
            raise ValueError(f"row_invariant must be True or False, got {self.row_invariant!r}")

    @property
    def refines(self) -> list[Refine]:
        """The `Refine`s of the hierarchy, the outermost first."""
        found, draft = [], self.draft
        while isinstance(draft, Refine):
            found.append(draft)
            draft = draft.draft
        return found

    @property
    def format(self) -> str:
        """How the target's weights are stored."""
        return split_model(self.target)[1]

    @property
    def method(self) -> str:
        """ar, chain, eagle2, static or hierspec."""
        return method_of(self.draft)


def method_of(draft: Drafting | None) -> str:
    """What decoding with a drafter is called, one of `terms.ALL_METHODS`."""
    names = {Chain: "chain", Eagle2: "eagle2", Static: "static", Refine: "hierspec"}
    return "ar" if draft is None else names[type(draft)]


def below(level: str) -> str:
    """What the model below a level is called: intermediate, intermediate2, intermediate3, ..."""
    if level == "target":
        return "intermediate"
    return f"intermediate{int(level.removeprefix('intermediate') or 1) + 1}"


def schemes(config: Config) -> dict[str, str]:
    """The format of each level's weights, target first: {"target": "w4a16-g128", "head": ...}."""
    level, draft = "target", config.draft
    found = {level: config.format}
    while isinstance(draft, Chain | Refine):
        level = below(level)
        found[level] = split_model(draft.model)[1]
        draft = draft.draft if isinstance(draft, Refine) else None
    if isinstance(draft, HeadDraft):
        # a head that is not named comes as its files hold it; kernels hold 16 bits
        unnamed = "fp32" if config.device == "cpu" else "w16a16"
        found["head"] = split_model(draft.head)[1] if draft.head else unnamed
    return found


def head_draft(draft: Drafting | None) -> Eagle2 | None:
    """The dynamic tree at the bottom of a hierarchy; None without one."""
    while isinstance(draft, Refine):
        draft = draft.draft
    return draft if isinstance(draft, Eagle2) else None


def pool_nodes(draft: Eagle2) -> int:
    """How many nodes, the root included, a draft has to choose from."""
    return 1 + draft.top_k + (draft.depth - 1) * draft.top_k**2


def most_nodes(draft: Eagle2) -> int:
    """Nodes of a tree, the root included: what was asked for, or as many as there are."""
    return min(draft.tree_size, pool_nodes(draft))


def as_dict(config: Config) -> dict:
    """A JSON-ready form; drafters carry their class name under `kind`."""

    def plain(value):
        if isinstance(value, Drafting):
            fields = {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
            return {"kind": type(value).__name__, **fields}
        return list(value) if isinstance(value, tuple) else value

    return {f.name: plain(getattr(config, f.name)) for f in dataclasses.fields(config)}


def from_dict(fields: dict) -> Config:
    """The inverse of `as_dict`; an unknown name is a ValueError."""
    kinds = {kind.__name__: kind for kind in (Eagle2, Static, Chain, Refine)}

    def built(value):
        if isinstance(value, dict):
            kind = kinds.get(value.get("kind"))
            if kind is None:
                raise ValueError(
                    f"unknown drafter {value.get('kind')!r}; known: {', '.join(kinds)}"
                )
            return _make(kind, {k: built(v) for k, v in value.items() if k != "kind"})
        return tuple(value) if isinstance(value, list) else value

    return _make(Config, {name: built(value) for name, value in fields.items()})


def _make(kind, fields: dict):
    known = {f.name for f in dataclasses.fields(kind)}
    if unknown := sorted(set(fields) - known):
        raise ValueError(f"{kind.__name__} has no {', '.join(unknown)}; known: {', '.join(known)}")
    try:
        return kind(**fields)
    except TypeError as error:  # a field without a default is missing
        raise ValueError(f"{kind.__name__}: {error}") from None


def config_id(config: Config) -> str:
    """Twelve hex digits that change exactly when the config does."""
    canonical = json.dumps(as_dict(config), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:12]
