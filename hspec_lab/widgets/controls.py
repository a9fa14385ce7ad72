"""The left side of the Explorer: widgets that together spell one `Choice`."""

from dataclasses import replace

import ipywidgets as ipw

from hspec_lab.config import CPU_FORMATS, MENU
from hspec_lab.terms import METHODS
from hspec_lab.widgets.choice import USED, Choice

_CONTEXTS = (128, 256, 512, 1024, 2048, 4096, 8192)
_WIDE = {"description_width": "128px"}
_LAYOUT = {"width": "340px"}
_WORDS = 34  # characters of a prompt that a menu shows
# a menu takes None for nothing chosen
_NONE = {"context": 0, "prompt": -1}
_METHODS = (
    "autoregressive: one token per pass, the yardstick",
    "the intermediate model drafts a sequence",
    "an EAGLE-2 head drafts a tree",
    "head, intermediate model, target: a tree becomes a sequence",
)
_ALL = ("all texts", _NONE["prompt"])
# what a choice calls a field, what the panel calls its control
NAMES = {
    "device": "device",
    "target": "target_format",
    "intermediate": "intermediate_format",
    "head": "head_format",
    "method": "method",
    "tree_size": "tree_size",
    "depth": "depth",
    "top_k": "top_k",
    "length": "draft_len",
    "context": "context",
    "prompt": "text",
}


class Controls(ipw.VBox):
    """Device, formats, method, sizes and text; `choice` reads and moves them all."""

    def __init__(self, start: Choice):
        self.method = ipw.ToggleButtons(
            options=METHODS,
            value=start.method,
            style={"button_width": "80px"},
            tooltips=_METHODS,
            layout=_LAYOUT,
        )
        self.device = _menu("device", [start.device], "whose times are predicted")
        self.target_format = _menu("target format", MENU, "how the target's weights are stored")
        # a stack's size is the target's own
        below = [name for name in MENU if not name.startswith("bitstack")]
        self.intermediate_format = _menu("intermediate", below, "how the intermediate model's are")
        heads = [("as its files hold it", ""), *((name, name) for name in CPU_FORMATS[1:])]
        self.head_format = _menu("head format", heads, "how the draft head's are")
        self.tree_size = _slider("tree size", 64, "nodes of the tree, its root counted")
        self.depth = _slider("depth, levels", 10, "levels of the tree below its root")
        self.top_k = _slider("top-k", 16, "children tried per node")
        self.draft_len = _slider("draft length", 16, "tokens handed to the target at least")
        contexts = [("as measured", _NONE["context"]), *((f"{n} tokens", n) for n in _CONTEXTS)]
        self.context = _menu("context", contexts, "tokens stored before the round")
        self.text = _menu("text", [_ALL], "the text whose acceptance is replayed")
        self._start = start
        super().__init__([self.method, *self._all()])
        self.method.observe(lambda _: self._enable(), "value")
        self.choice = start
        self._enable()

    @property
    def choice(self) -> Choice:
        """What the controls spell now; set it to move them all."""
        found = {name: getattr(self, to).value for name, to in NAMES.items()}
        none = {name: None for name, value in _NONE.items() if found[name] == value}
        return Choice(**found | none)

    @choice.setter
    def choice(self, choice: Choice) -> None:
        for name, to in NAMES.items():
            value = getattr(choice, name)
            _move(getattr(self, to), _NONE[name] if value is None else value)

    def offer(self, devices: list[str], texts: list[str]) -> None:
        """Fill the menus that depend on what was recorded; what is chosen stays chosen."""
        kept = self.choice
        self.device.options = devices
        names = [(f"{number}: {_first_words(text)}", number) for number, text in enumerate(texts)]
        self.text.options = [_ALL, *names]
        device = kept.device if kept.device in devices else devices[0]
        prompt = kept.prompt if kept.prompt is None or kept.prompt < len(texts) else None
        self.choice = replace(kept, device=device, prompt=prompt)

    def watch(self, changed) -> None:
        """Call `changed()` whenever any control moves."""
        for control in (self.method, *self._all()):
            control.observe(lambda _: changed(), "value")

    def _all(self) -> list[ipw.Widget]:
        return [getattr(self, to) for name, to in NAMES.items() if name != "method"]

    def _enable(self) -> None:
        used = USED[self.method.value]
        for name in USED["hierspec"]:
            getattr(self, NAMES[name]).disabled = name not in used
        at_least = self.method.value == "hierspec"
        self.draft_len.description = "min. draft length" if at_least else "draft length"


def _move(control: ipw.Widget, value) -> None:
    """Give a control a value, and room for it where it had none."""
    if isinstance(control, ipw.IntSlider):
        control.max = max(control.max, value)
    elif isinstance(control, ipw.Dropdown) and value not in _values(control):
        told = f"{value} tokens" if control.description == "context" else str(value)
        control.options = [*control.options, (told, value)]
    control.value = value


def _values(control: ipw.Dropdown) -> list:
    return [one[1] if isinstance(one, tuple) else one for one in control.options]


def _first_words(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _WORDS else f"{line[: _WORDS - 1]}…"


def _menu(name: str, options, tooltip: str) -> ipw.Dropdown:
    pairs = [one if isinstance(one, tuple) else (one, one) for one in options]
    return ipw.Dropdown(
        options=pairs, description=name, tooltip=tooltip, style=_WIDE, layout=_LAYOUT
    )


def _slider(name: str, high: int, tooltip: str) -> ipw.IntSlider:
    return ipw.IntSlider(1, 1, high, description=name, tooltip=tooltip, style=_WIDE, layout=_LAYOUT)
