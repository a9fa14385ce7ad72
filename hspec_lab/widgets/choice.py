"""What the controls of a panel spell, as a value: to a config and back, to a line and back."""

from dataclasses import dataclass, fields, replace
from urllib.parse import parse_qsl, urlencode

from hspec_lab.config import (
    Chain,
    Config,
    Drafting,
    Eagle2,
    Refine,
    check_format,
    head_draft,
    split_model,
)
from hspec_lab.terms import METHODS

_TREE = ("tree_size", "depth", "top_k", "head")
# what a method listens to, besides the target's format
USED = {
    "ar": (),
    "chain": ("intermediate", "length"),
    "eagle2": _TREE,
    "hierspec": ("intermediate", "length", *_TREE),
}


@dataclass(frozen=True)
class Choice:
    """A configuration as the controls spell it.

    Attributes:
        device: one of `Answers.devices`.
        target, intermediate, head: formats of the three levels; head "" as its files hold it.
        method: one of `terms.METHODS`.
        tree_size, depth, top_k: of the head's tree.
        length: of a chain, or hierspec's minimum.
        context: tokens stored; None: as the stages were measured.
        prompt: number of the text; None: all.
    """

    device: str = ""
    target: str = "w4a16-g128"
    intermediate: str = "w4a16-g128"
    head: str = ""
    method: str = "hierspec"
    tree_size: int = 24
    depth: int = 4
    top_k: int = 8
    length: int = 6
    context: int | None = None
    prompt: int | None = None

    def drafter(self, base: Config) -> Drafting | None:
        """The drafter of this choice; `base` names the models, and what no control spells."""
        own = base.draft
        middle = own.model if isinstance(own, Chain | Refine) else intermediate_of(base)
        below = _stored(middle, self.intermediate)
        tree = Eagle2(self.tree_size, self.depth, self.top_k, self._head(base))
        if self.method == "hierspec" and isinstance(own, Refine):
            return replace(own, model=below, draft=tree, at_least=self.length)
        if self.method == "hierspec":
            return Refine(below, tree, self.length)
        return {"ar": None, "chain": Chain(below, self.length), "eagle2": tree}[self.method]

    def config(self, base: Config) -> Config:
        """The config of this choice; prompts, lengths, device and threads are the base's."""
        return replace(base, target=_stored(base.target, self.target), draft=self.drafter(base))

    def query(self) -> str:
        """The choice as one line, as behind a `?` in an address."""
        found = {field.name: getattr(self, field.name) for field in fields(self)}
        return urlencode({name: value for name, value in found.items() if value not in (None, "")})

    def _head(self, base: Config) -> str | None:
        own = head_draft(base.draft)
        if not self.head:
            return None
        if own is not None and own.head and base.method == self.method:
            return _stored(own.head, self.head)
        serves = base.target if self.method == "eagle2" else intermediate_of(base)
        return f"{split_model(serves)[0]}-eagle2@{self.head}"


def choice_of(config: Config, device: str = "") -> Choice:
    """The choice that spells a config; ValueError where controls cannot."""
    draft, found = config.draft, {"target": config.format, "intermediate": config.format}
    if config.method not in METHODS:
        raise ValueError(f"Explorer shows {', '.join(METHODS)}, got {config.method}")
    if isinstance(draft, Refine) and not isinstance(draft.draft, Eagle2):
        raise ValueError(f"Explorer shows Refine over Eagle2, got Refine over {draft.draft!r}")
    if isinstance(draft, Chain | Refine):
        found["intermediate"] = split_model(draft.model)[1]
        found["length"] = draft.draft_len if isinstance(draft, Chain) else draft.at_least
    if (tree := head_draft(draft)) is not None:
        found |= {name: getattr(tree, name) for name in ("tree_size", "depth", "top_k")}
        found["head"] = split_model(tree.head)[1] if tree.head else ""
    return Choice(device, method=config.method, **found)


def from_query(text: str, start: Choice) -> Choice:
    """The choice that a line spells; what it leaves out is as in `start`.

    Raises:
        ValueError: an entry that no choice has, a number that is none, or an unknown format.
    """
    kinds = {field.name: field.type for field in fields(Choice)}
    text = text.removeprefix("?")
    found = {}
    for name, value in parse_qsl(text, strict_parsing=bool(text)):
        if name not in kinds:
            raise ValueError(f"a state has {', '.join(kinds)}; got {name!r}")
        found[name] = value if kinds[name] is str else _number(name, value)
    if found.get("method", METHODS[0]) not in METHODS:
        raise ValueError(f"method is one of {', '.join(METHODS)}; got {found['method']!r}")
    for name in {"target", "intermediate", "head"} & set(found):
        check_format(found[name])
    return replace(start, **found)


def intermediate_of(base: Config) -> str:
    """Where the model between target and head lies: the base's, or the zoo's."""
    draft = base.draft
    return split_model(draft.model)[0] if isinstance(draft, Chain | Refine) else "zoo:intermediate"


def _number(name: str, value: str) -> int:
    # prompts count from 0, everything else from 1
    if not value.isdecimal() or int(value) < (name != "prompt"):
        raise ValueError(f"{name} is a whole number, got {value!r}")
    return int(value)


def _stored(reference: str, format: str) -> str:
    """A model in another format; as it was written where that is its own."""
    place, own = split_model(reference)
    return reference if own == format else f"{place}@{format}"
