"""A decode as trees: one proposal at a time, and the text as it stood then.

view = TreeView(look(config))
view.show(round=3), view.show(round=3, level="intermediate", step=0)
view.figure(), view.table(), view.to_html("tree.html")

The slider (or *play*) goes from round to round, the buttons from the steps of the models below to
the target's.  Of several wishes the latest is drawn.  The panel runs no model and imports no torch.
"""

import threading
import time
from html import escape
from pathlib import Path

import ipywidgets as ipw
import pandas as pd
import plotly.graph_objects as go

from hspec_lab import figures_tree
from hspec_lab.trees_folder import PROPOSAL, Trees
from hspec_lab.widgets.still_tree import still_html
from hspec_lab.widgets.views import HOW_TO_GET_LIVE, STYLE, LiveView, StillView, fit, page

DEBOUNCE_S = 0.03
PLAY_MS = 1200
_WIDTH = 640  # px of the tree on a laptop, beside the text


class TreeView(ipw.VBox):
    """Rounds of a decode that was looked at, see `look.look`."""

    def __init__(self, trees: Trees):
        """Show the first round behind the prefill.

        Raises:
            ValueError: there is no round.
        """
        self.trees = trees
        self._proposals = {
            key: part.reset_index(drop=True)
            for key, part in trees.nodes.groupby(PROPOSAL, sort=False)
        }
        self.rounds = list(dict.fromkeys((prompt, at) for prompt, at, *_ in self._proposals))
        if not self.rounds:
            raise ValueError("TreeView: no round was looked at; call look(config) first")
        # as high as a level's tallest tree, so that the page stands still when rounds change
        self._heights: dict[str, int] = {}
        for key, nodes in self._proposals.items():
            tallest = max(self._heights.get(key[2], 0), figures_tree.height_of(nodes))
            self._heights[key[2]] = tallest
        # a front end speaks on one thread, timers tick on another
        self._lock = threading.RLock()
        self._timer: threading.Timer | None = None
        self._filling = False
        self.proposal: tuple[int, int, str, int]  # prompt, round, level, step of what is chosen
        self._build()

    def _build(self) -> None:
        first = min(1, len(self.rounds) - 1)
        last = len(self.rounds) - 1
        style = {"description_width": "48px"}
        self.slider = ipw.IntSlider(
            first, 0, last, description="round", readout=False, style=style, disabled=not last
        )
        self.slider.layout = {"width": "340px"}
        self.play = ipw.Play(first, 0, last, interval=PLAY_MS, disabled=not last)
        ipw.link((self.play, "value"), (self.slider, "value"))
        self.which = ipw.ToggleButtons(style={"button_width": "auto"})
        self.here = ipw.Label()
        self._fill_choices()
        self.picture = _picture(self.figure())
        self.text, self.status = ipw.HTML(), ipw.HTML()
        self.slider.observe(lambda _: self._moved(), "value")
        self.which.observe(lambda _: self._chosen(), "value")
        row = ipw.Box(
            [self.play, self.slider, self.here, self.which],
            layout={"flex_flow": "row wrap", "align_items": "center"},
        )
        self.picture.layout = {"flex": "1 1 640px", "min_width": "0", "overflow": "hidden"}
        self.text.layout = {"flex": "1 1 300px", "min_width": "0", "max_width": "640px"}
        shown = ipw.Box([self.picture, self.text], layout={"flex_flow": "row wrap"})
        shown.add_class("hspec-views")
        hidden = ipw.HTML(STYLE + _STYLE, layout={"display": "none"})
        super().__init__([hidden, row, self.status, shown, *fit()])
        self.add_class("hspec-explorer")
        self.add_class("hspec-tree")
        self._say()

    def table(self) -> pd.DataFrame:
        """Return the nodes of the present tree, columns as `trees_folder.NODES`."""
        return self._proposals[self.proposal]

    def figure(self) -> go.Figure:
        """Return the present tree."""
        height = self._heights[self.proposal[2]]
        note = self.trees.note
        return figures_tree.tree_figure(self.table(), note=note, width=_WIDTH, height=height)

    def text_html(self) -> str:
        """Return the text as it stood, coloured by who produced each token."""
        prompt, at, level, _ = self.proposal
        tokens = self.trees.tokens
        given = self.trees.head["prompts"].get(str(prompt), "")
        drafted = None if level == "target" else self._drafted()
        return figures_tree.text_so_far(given, tokens[tokens["prompt"] == prompt], at, drafted)

    def to_html(self, path: Path | str) -> Path:
        """Write the present tree and text as one offline page; returns where it lies."""
        path = Path(path)
        text = page("Inside a round", self.trees.note, [self.figure()])
        path.write_text(text.replace("</body>", f"{self.text_html()}</body>"), encoding="utf-8")
        return path

    def show(self, round: int, level: str = "target", step: int = 0, prompt: int = 0) -> None:
        """Go to a proposal, now.

        Raises:
            ValueError: there is none such.
        """
        if (prompt, round, level, step) not in self._proposals:
            raise ValueError(f"no step {step} of {level} in round {round} of prompt {prompt}")
        with self._lock:
            self.slider.value = self.rounds.index((prompt, round))
            self.which.value = (level, step)
        self._want()
        self.wait()

    def wait(self, timeout_s: float = 10.0) -> bool:
        """Block until the last wish is drawn, for scripts and tests; False if time ran out."""
        end = time.monotonic() + timeout_s
        while time.monotonic() < end:
            with self._lock:
                if self._timer is None:
                    return True
            time.sleep(0.005)
        return False

    def _moved(self) -> None:
        with self._lock:
            self._fill_choices()
            self._want()

    def _chosen(self) -> None:
        """Take a level; while another round's are filled in, nobody has chosen anything."""
        with self._lock:
            if not self._filling and self.which.value is not None:
                self.proposal = (*self.proposal[:2], *self.which.value)
                self._want()

    def _fill_choices(self) -> None:
        """Offer the steps of this round, and stay on the level that was shown."""
        here = self.rounds[self.slider.value]
        steps = [key[2:] for key in self._proposals if key[:2] == here]
        level, step = self.which.value or ("target", 0)
        of_level = [one for one in steps if one[0] == level] or [("target", 0)]
        names = [one if one == "target" else f"{one} {at + 1}" for one, at in steps]
        chosen = of_level[min(step, len(of_level) - 1)]
        self._filling = True
        self.which.options = list(zip(names, steps, strict=True))
        self.which.value = chosen
        self._filling = False
        self.proposal = (*here, *chosen)
        self.here.value = self._called(*here)

    def _called(self, prompt: int, at: int) -> str:
        called = "prefill" if at < 0 else f"{at} of {self.rounds[-1][1]}"
        several = len(self.trees.head["prompts"]) > 1
        return f"{called}, prompt {prompt}" if several else called

    def _drafted(self) -> pd.DataFrame:
        """What the models below have put together in this round, up to the present step."""
        prompt, at, level, last = self.proposal
        rows = []
        for step in range(last + 1):
            nodes = self._proposals[(prompt, at, level, step)]
            path = nodes[nodes["accepted"]].sort_values("depth")
            rows += path.loc[path["node"] > 0, ["piece", "source"]].values.tolist()
            rows.append([path["choice_piece"].iloc[-1], level])
        return pd.DataFrame(rows, columns=["piece", "source"])

    def _want(self) -> None:
        with self._lock:
            if self._timer is None:
                self._timer = threading.Timer(DEBOUNCE_S, self._draw)
                self._timer.daemon = True
                self._timer.start()

    def _draw(self) -> None:
        with self._lock:
            try:
                self.picture.show(self.figure())
                self._say()
            finally:
                self._timer = None

    def _say(self) -> None:
        """Bring the text up to the tree; the tree's title says the rest."""
        self.text.value = self.text_html()
        self.status.value = "" if self.picture.live else f"<div>{escape(HOW_TO_GET_LIVE)}</div>"


_STYLE = """<style>
.hspec-tree .widget-play button { min-width: 32px; }
.hspec-tree .widget-toggle-buttons { width: auto; }
</style>"""


class _LiveTree(LiveView):
    """A tree of which only what can differ is sent."""

    def show(self, figure: go.Figure) -> None:
        # every trace gets every one of these: a figure that no front end has drawn yet would lose
        # what a message leaves out
        traces, layout = figure.data, figure.layout
        changed = {name: [trace[name] for trace in traces] for name in ("x", "y", "text")}
        changed["hovertext"] = [trace.hovertext for trace in traces]
        changed["marker.color"] = [trace.marker.color for trace in traces]
        moved = {name: layout[name] for name in ("title.text", "height")}
        arrays = ("yaxis.range", "xaxis.range", "xaxis.tickvals", "xaxis.ticktext")
        moved |= {name: list(layout[name]) for name in arrays}
        if layout.height != self.figure.layout.height:
            # a height of its own ends autosize in a front end, unless that is sent with it
            self.figure.plotly_relayout({"autosize": False})
            moved["autosize"] = True
        self.figure.plotly_update(changed, moved, list(range(len(traces))))


def _picture(figure: go.Figure) -> LiveView | StillView:
    """A widget that shows trees; live where plotly's FigureWidget works."""
    try:
        return _LiveTree(figure)
    except ImportError:
        return StillView(figure, still_html)
