"""Buttons of the Explorer that act on what is chosen: find, pin, copy, export."""

import dataclasses

import ipywidgets as ipw

from hspec_lab import trace_out
from hspec_lab.config import Chain, Config, Eagle2, Refine

_COPY = """
export default { render({ model, el }) {
  const button = document.createElement("button");
  button.className = "lm-Widget jupyter-widgets jupyter-button widget-button";
  button.textContent = "Copy as code";
  button.title = "the config that reproduces this, to the clipboard";
  button.addEventListener("click", async () => {
    const text = model.get("code");
    let copied = true;
    try { await navigator.clipboard.writeText(text); } catch (error) {
      const area = document.createElement("textarea");
      area.value = text;
      document.body.append(area);
      area.select();
      copied = document.execCommand("copy");
      area.remove();
      button.focus();
    }
    model.set("copied", copied);
    model.set("clicks", model.get("clicks") + 1);
    model.save_changes();
  });
  el.append(button);
} };
"""
_PAGE = "page"


class Actions(ipw.VBox):
    """The buttons, and the text of *Copy as code*, which appears when it is asked for."""

    def __init__(self):
        self.find_best = _button("Find best", "search", "the fastest recorded setting here")
        self.pin = _button("Pin", "thumb-tack", "keep this setting's bars for comparison")
        self.unpin = _button("Unpin all", "", "drop the bars that were kept")
        self.unpin.disabled = True
        self.copy = _copy_button()
        self.export = _button("Export", "download", "write the measured run for another tool")
        self.format = ipw.Dropdown(
            options=[*trace_out.FORMATS, _PAGE],
            tooltip="of the exported file",
            layout={"width": "140px"},
        )
        self.text = ipw.Textarea(
            layout={"width": "340px", "height": "118px", "display": "none"}, continuous_update=False
        )
        rows = [
            ipw.HBox([self.find_best, self.copy]),
            ipw.HBox([self.pin, self.unpin]),
            ipw.HBox([self.export, self.format]),
        ]
        super().__init__([*rows, self.text])

    @property
    def code(self) -> str:
        """What *Copy as code* gives."""
        return self.text.value

    @code.setter
    def code(self, code: str) -> None:
        self.text.value = code
        if not isinstance(self.copy, ipw.Button):
            self.copy.code = code

    def on_copy(self, copied) -> None:
        """Show the text when the button is pressed, then call `copied(whether)`."""

        def show(done: bool) -> None:
            self.text.layout.display = ""
            copied(done)

        if isinstance(self.copy, ipw.Button):
            self.copy.on_click(lambda _: show(False))
        else:
            self.copy.observe(lambda _: show(self.copy.copied), "clicks")


def code_of(config: Config) -> str:
    """Python that makes a config and measures it; what is as by default is left out."""
    plain = Config()
    names = [field.name for field in dataclasses.fields(Config)]
    said = [name for name in names if getattr(config, name) != getattr(plain, name)]
    lines = "".join(f"    {name}={getattr(config, name)!r},\n" for name in said)
    kinds = {type(config.draft), *(type(one.draft) for one in config.refines)}
    used = [kind.__name__ for kind in (Chain, Eagle2, Refine) if kind in kinds]
    names = ", ".join(["Config", *used, "run"])
    made = f"Config(\n{lines})" if lines else "Config()"
    return f"from hspec_lab import {names}\n\nconfig = {made}\nresult = run(config)\n"


def _button(name: str, icon: str, tooltip: str) -> ipw.Button:
    return ipw.Button(description=name, icon=icon, tooltip=tooltip)


def _copy_button() -> ipw.Widget:
    """A button that fills the clipboard; one that only shows the text without anywidget."""
    try:
        import anywidget
        import traitlets
    except ImportError:
        return _button("Copy as code", "", "the config that reproduces this")
    traits = {
        "_esm": _COPY,
        "code": traitlets.Unicode("").tag(sync=True),
        "copied": traitlets.Bool(False).tag(sync=True),
        "clicks": traitlets.Int(0).tag(sync=True),
    }
    return type("CopyAsCode", (anywidget.AnyWidget,), traits)()
