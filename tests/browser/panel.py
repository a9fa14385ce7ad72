"""The Explorer on a page, as hands and eyes have it: handles, keys, buttons, bars, one line."""

import re
import time
from collections.abc import Callable

from playwright.sync_api import Locator, Page

from hspec_lab.terms import ROUND_PHASES
from hspec_lab.widgets.pictures import VIEWS

# what plotly has drawn: numbers as it decoded them, not as they were sent
_TRACES = """(view) => view.querySelector(".js-plotly-plot")._fullData.map((trace) => ({
    name: trace.name, type: trace.type,
    x: Array.from(trace.x ?? []), y: Array.from(trace.y ?? []) }))"""
_UNIT = """(view) => view.querySelector(".js-plotly-plot")._fullLayout.xaxis.title.text"""
_PIXEL = """(view, [x, y]) => {
    const plot = view.querySelector(".js-plotly-plot"), box = plot.getBoundingClientRect();
    const { xaxis, yaxis } = plot._fullLayout;
    return [box.x + xaxis._offset + xaxis.d2p(x), box.y + yaxis._offset + yaxis.d2p(y)];
}"""
_HOVERED = """([view, x, y]) => view.querySelector(".js-plotly-plot")._hoverdata
    ?.some((point) => point.x === x && point.y === y)"""


class Panel:
    """One of a notebook's Explorers."""

    def __init__(self, page: Page, number: int = 0):
        self.page = page
        with_views = page.locator(".hspec-explorer", has=page.locator(".hspec-grid"))
        self.root = with_views.nth(number)

    @property
    def status(self) -> str:
        """The line that says what is shown."""
        return self.root.get_by_role("status").inner_text()

    @property
    def state(self) -> str:
        """The settings as one line, as the panel spells them."""
        return self._state_box.input_value()

    @state.setter
    def state(self, line: str) -> None:
        self._state_box.fill(line)
        self._state_box.press("Enter")

    @property
    def _state_box(self) -> Locator:
        return self._control("state").locator("input")

    def button(self, name: str) -> Locator:
        """A button by its words."""
        # an icon's letter stands before the words
        return self.root.locator("button").filter(has_text=re.compile(rf"^\s*{name}\s*$"))

    def chosen(self, name: str) -> str:
        """What the menu with this label shows."""
        shown = self._control(name).locator("select option:checked").inner_text()
        # a menu keeps its spaces apart from line breaks
        return shown.replace("\xa0", " ")

    def handle(self, name: str) -> Locator:
        """What a hand takes of the slider with this label."""
        return self._control(name).get_by_role("slider")

    def value(self, name: str) -> int:
        """Where a slider stands."""
        return int(float(self.handle(name).get_attribute("aria-valuenow")))

    def press(self, name: str, key: str, times: int = 1) -> None:
        """Move a slider by keys, as fast as they can be sent."""
        self.handle(name).focus()
        for _ in range(times):
            self.page.keyboard.press(key)

    def drag(self, name: str, value: int) -> None:
        """Move a slider by the mouse, over everything in between."""
        handle = self.handle(name)
        handle.scroll_into_view_if_needed()
        low, high = (float(handle.get_attribute(f"aria-value{end}") or 0) for end in ("min", "max"))
        start, track = handle.bounding_box(), self._control(name).locator(".noUi-base")
        room = track.bounding_box()
        y = start["y"] + start["height"] / 2
        self.page.mouse.move(start["x"] + start["width"] / 2, y)
        self.page.mouse.down()
        end = room["x"] + room["width"] * (value - low) / (high - low)
        self.page.mouse.move(end, y, steps=12)
        self.page.mouse.up()

    def view(self, name: str) -> Locator:
        """The place of one of `VIEWS`."""
        return self.root.locator(".hspec-grid > *").nth(VIEWS.index(name))

    def traces(self, view: str) -> list[dict]:
        """What a view's figure holds: name, type, x, y of every trace."""
        return self.view(view).evaluate(_TRACES)

    def current(self, view: str) -> list[float]:
        """Where a view marks the present setting: [x, y]."""
        marks = [one for one in self.traces(view) if one["name"] == "current"]
        return [marks[0]["x"][0], marks[0]["y"][0]] if marks else []

    def bars(self) -> dict[str, dict[str, float]]:
        """us per emitted token of every bar of the breakdown, by phase."""
        scale = 1e3 if self.view("breakdown").evaluate(_UNIT).startswith("ms") else 1.0
        found: dict[str, dict[str, float]] = {}
        for trace in self.traces("breakdown"):
            if trace["name"] in ROUND_PHASES:
                for label, value in zip(trace["y"], trace["x"], strict=True):
                    found.setdefault(label, {})[trace["name"]] = value * scale
        return found

    def own_bar(self, origin: str) -> dict[str, float]:
        """The last bar of this origin: after plain decoding's comes the present setting's."""
        found = [us for name, us in self.bars().items() if name.endswith(f"· {origin}")]
        return found[-1] if found else {}

    def click_map(self, tree_size: int, depth: int) -> None:
        """Click a cell of the acceptance map."""
        view = self.view("acceptance")
        view.evaluate("(view) => view.scrollIntoView({ block: 'center' })")
        x, y = view.evaluate(_PIXEL, [tree_size, depth])
        self.page.mouse.move(x - 3, y)
        self.page.mouse.move(x, y)
        cell = [view.element_handle(), tree_size, depth]
        self.page.wait_for_function(_HOVERED, arg=cell)
        self.page.mouse.click(x, y)

    def until_drawn(self) -> None:
        """Wait until all five views have drawn a figure with a title."""
        for name in VIEWS:
            self.view(name).locator(".gtitle").first.wait_for(state="attached")

    def until(
        self, holds: Callable[[], bool], timeout_s: float = 60, said: Callable | None = None
    ) -> None:
        """Wait until something holds; an error says what stood there when it never did."""
        end = time.monotonic() + timeout_s
        while not holds():
            if time.monotonic() > end:
                stood = said() if said else f"{self.state}: {self.status}"
                raise AssertionError(f"waited {timeout_s:.0f} s in vain; {stood}")
            self.page.wait_for_timeout(40)

    def cut_off(self) -> list[str]:
        """Views whose drawing is wider than the room it has."""
        found = []
        for name in VIEWS:
            room = self.view(name).bounding_box()
            drawn = self.view(name).locator(".main-svg").first.bounding_box()
            if drawn["width"] > room["width"] + 1:
                found.append(f"{name}: {drawn['width']:.0f} of {room['width']:.0f} pixels")
        return found

    def _control(self, label: str) -> Locator:
        named = self.page.locator(".widget-label").get_by_text(label, exact=True)
        return self.root.locator(".widget-inline-hbox").filter(has=named)
