"""The left side of the Explorer: widgets that together spell one `Config`."""

from dataclasses import replace

import ipywidgets as ipw

from hspec_lab.config import MENU, Chain, Config, Eagle2, Refine, split_model
from hspec_lab.terms import METHODS

# which controls a method listens to, besides the target's format
_USED = {
    "ar": (),
    "chain": ("intermediate_format", "draft_len"),
    "eagle2": ("tree_size", "depth", "top_k"),
    "hierspec": ("intermediate_format", "tree_size", "depth", "top_k", "draft_len"),
}
_WIDE = {"description_width": "142px"}


class Controls(ipw.VBox):
    """Format, method and sizes; everything else of a configuration is taken from `base`."""

    def __init__(self, base: Config):
        self.base = base
        chosen, intermediate, eagle, draft_len = _taken_apart(base)
        self.method = ipw.ToggleButtons(
            options=METHODS, value=chosen, style={"button_width": "76px"}, tooltips=_METHODS
        )
        self.target_format = _dropdown(
            "target format", base.format, "how the target's weights are stored"
        )
        self.intermediate_format = _dropdown(
            "intermediate format",
            split_model(intermediate)[1],
            "how the intermediate model's are",
            # a stack's size is the target's own
            tuple(name for name in MENU if not name.startswith("bitstack")),
        )
        self.tree_size = _slider(
            "tree size", eagle.tree_size, 2, 64, "nodes of the tree, its root counted"
        )
        self.depth = _slider("depth", eagle.depth, 1, 10, "levels of the tree below its root")
        self.top_k = _slider("top-k", eagle.top_k, 1, 16, "children tried per node")
        self.draft_len = _slider(
            "draft length", draft_len, 1, 16, "tokens handed to the target at least"
        )
        self._sampling = getattr(base.draft, "sampling", "sample")
        self._where = {
            "target": split_model(base.target)[0],
            "intermediate": split_model(intermediate)[0],
            "head": eagle.head,
        }
        self.sizes = (
            self.target_format,
            self.intermediate_format,
            self.tree_size,
            self.depth,
            self.top_k,
            self.draft_len,
        )
        super().__init__([self.method, *self.sizes])
        self.method.observe(lambda _: self._enable(), "value")
        self._enable()

    @property
    def config(self) -> Config:
        """The configuration that the controls spell now."""
        intermediate = f"{self._where['intermediate']}@{self.intermediate_format.value}"
        eagle = Eagle2(
            self.tree_size.value, self.depth.value, self.top_k.value, self._where["head"]
        )
        draft = {
            "ar": None,
            "chain": Chain(intermediate, self.draft_len.value),
            "eagle2": eagle,
            "hierspec": Refine(intermediate, eagle, self.draft_len.value, self._sampling),
        }[self.method.value]
        target = f"{self._where['target']}@{self.target_format.value}"
        return replace(self.base, target=target, draft=draft)

    def watch(self, changed) -> None:
        """Call `changed()` whenever any control moves."""
        for control in (self.method, *self.sizes):
            control.observe(lambda _: changed(), "value")

    def _enable(self) -> None:
        used = _USED[self.method.value]
        for name in _USED["hierspec"]:
            getattr(self, name).disabled = name not in used
        at_least = self.method.value == "hierspec"
        self.draft_len.description = "min. draft length" if at_least else "draft length"


_METHODS = (
    "autoregressive: one token per pass, the yardstick",
    "the intermediate model drafts a sequence",
    "an EAGLE-2 head drafts a tree",
    "head, intermediate model, target: a tree becomes a sequence",
)


def _taken_apart(config: Config) -> tuple[str, str, Eagle2, int]:
    """Method, intermediate model, tree and draft length; defaults where a config has none."""
    if config.method == "static":
        raise ValueError("Explorer shows trees that grow: give Eagle2, not Static")
    draft, intermediate, draft_len = config.draft, f"zoo:intermediate@{config.format}", 6
    if isinstance(draft, Chain):
        intermediate, draft_len = draft.model, draft.draft_len
    if isinstance(draft, Refine):
        if not isinstance(draft.draft, Eagle2):
            raise ValueError(f"Explorer shows Refine over Eagle2, got Refine over {draft.draft!r}")
        intermediate, draft_len, draft = draft.model, draft.at_least, draft.draft
    eagle = draft if isinstance(draft, Eagle2) else Eagle2()
    return config.method, intermediate, eagle, draft_len


def _dropdown(name: str, value: str, tooltip: str, menu: tuple = MENU) -> ipw.Dropdown:
    return ipw.Dropdown(
        options=menu if value in menu else (*menu, value),
        value=value,
        description=name,
        tooltip=tooltip,
        style=_WIDE,
        layout={"width": "340px"},
    )


def _slider(name: str, value: int, low: int, high: int, tooltip: str) -> ipw.IntSlider:
    return ipw.IntSlider(
        value,
        low,
        max(high, value),
        description=name,
        tooltip=tooltip,
        style=_WIDE,
        layout={"width": "340px"},
    )
