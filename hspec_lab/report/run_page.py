"""Everything that one run can show; what cannot be drawn says in a line why."""

import html
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import pandas as pd
import plotly.graph_objects as go

from hspec_lab import breakdown, figures, figures_trace
from hspec_lab.analysis.attribution import attribute
from hspec_lab.analysis.critical import critical_path
from hspec_lab.analysis.difference import difference
from hspec_lab.analysis.kernels import by_kernel
from hspec_lab.analysis.limits import limits
from hspec_lab.analysis.rounds import slowest
from hspec_lab.report.predicted import beside_prediction
from hspec_lab.report.rounds import in_order_of_time, rounds_over_time
from hspec_lab.timeline import Timeline, nested
from hspec_lab.trace_in import read_trace

if TYPE_CHECKING:
    from hspec_lab.lab import Run

_SLOWEST = 8
_MOST_TEXTS = 12
_MOST_LETTERS = 320  # of a reason
# more than a screen has, so that zooming in shows more
_TIMELINE_PX, _TIMELINE_BARS = 4000, 4000
_SAME_MACHINE = breakdown.CONDITIONS[1:]

Drawn = go.Figure | str


def figures_of(run: "Run", others: Sequence["Run"] = ()) -> dict[str, Drawn]:
    """Return everything that a run can show, heading -> figure or HTML.

    Args:
        others: of the same store; among them may be the yardstick of its speed-up.
    """
    beside, timeline = comparable(run, others), run.timeline()
    said = figures_trace.caption(timeline)
    plain = _plain_of(run, beside)
    parts: dict[str, Callable[[], Drawn]] = {
        "Where the time of a token goes": lambda: _breakdown(run, said),
        "Speed-up over plain decoding": lambda: _speedups(run, beside, said),
        "Tokens per round": lambda: _emitted(run, said),
        "Round by round": lambda: rounds_over_time(
            in_order_of_time(run.rounds), method=run.head["method"], **said
        ),
        "The slowest rounds": lambda: figures_trace.slowest_rounds(
            slowest(run.rounds, run.spans, _SLOWEST), **said
        ),
        "How near the device's limits": lambda: _limits(run, timeline),
        "What a round waits for": lambda: figures_trace.critical_path(
            critical_path(timeline), **said
        ),
        "Against plain decoding, phase by phase": lambda: _difference(run, plain, said),
        "Predicted and measured": lambda: beside_prediction(run, plain),
        "Kernels": lambda: _kernels(run, timeline, said),
        "What happened when": lambda: _first_prompt(timeline, said),
        "Which model produced each token": lambda: _texts(run),
    }
    return {heading: _drawn(draw) for heading, draw in parts.items()}


def comparable(run: "Run", others: Sequence["Run"]) -> list["Run"]:
    """Return those of `others` that decoded the same prompts on the same machine, then the run.

    Oldest first; runs whose tables cannot be read are left out.
    """

    def work(one: "Run") -> list:
        where = [one.environment.get(name) for name in _SAME_MACHINE]
        return [where, one.prompts, one.head["kind"]]

    found = [one for one in others if one.name != run.name and work(one) == work(run)]
    found.sort(key=lambda one: str(one.environment.get("date", "")))
    return [*filter(_can_be_read, found), run]


def _can_be_read(run: "Run") -> bool:
    try:
        return len(run.rounds) > 0
    except ValueError:
        return False


def _plain_of(run: "Run", beside: list["Run"]) -> "Run | None":
    """The newest ar run that is the yardstick of a run; None where there is none, or it is one."""
    if run.head["method"] == "ar":
        return None
    mine = (run.head, run.rounds, run.spans)
    for one in reversed(beside[:-1]):
        if one.head["method"] != "ar":
            continue
        compared = breakdown.speedups([(one.head, one.rounds, one.spans), mine])
        if compared["speedup"].iloc[-1] > 0:
            return one
    return None


def _drawn(draw: Callable[[], Drawn]) -> Drawn:
    try:
        return draw()
    except ValueError as error:
        reason = textwrap.shorten(str(error), _MOST_LETTERS, placeholder=" …")
        return f"<p class='note missing'>Not drawn: {html.escape(reason)}.</p>"


def _breakdown(run: "Run", said: dict) -> go.Figure:
    """The whole, then each level by itself."""
    _check_emitted(run)
    whole, by_level = run.breakdown(), run.breakdown(by_level=True)
    levels = by_level[by_level["level"] != ""]
    levels = levels.assign(label="of it, " + levels["level"])
    return figures.breakdown_bar(pd.concat([whole, levels]), **said)


def _check_emitted(run: "Run") -> None:
    counted = run.rounds[~run.rounds["warmup"].astype(bool)]
    if not counted["n_emitted"].sum() > 0:
        raise ValueError("the run has no measured rounds that emitted tokens")


def _speedups(run: "Run", beside: list["Run"], said: dict) -> go.Figure:
    """Of each format and method the newest run, the page's own always among them."""
    _check_emitted(run)
    table = breakdown.speedups([(one.head, one.rounds, one.spans) for one in beside])
    own = table.iloc[-1]
    if not own["speedup"] > 0:
        raise ValueError(f"{own['reason']}: decode them plainly, `--method ar`, into this store")
    names = {"speedup_low": "low", "speedup_high": "high"}
    table = table.rename(columns=names).assign(current=False)
    table.loc[table.index[-1], "current"] = True
    note = f"{said['note']}; of each format and method the newest stored run, this one outlined"
    return figures.speedup_bars(table, origin=said["origin"], note=note)


def _emitted(run: "Run", said: dict) -> go.Figure:
    _check_emitted(run)
    counted = run.rounds[~run.rounds["warmup"].astype(bool)]
    emitted = counted[["n_emitted"]].assign(method=run.head["method"])
    return figures.emitted_per_round(emitted, **said)


def _limits(run: "Run", timeline: Timeline) -> go.Figure:
    launches = timeline.tables().get("launches")
    table = limits(run.head, run.spans, launches)
    if table["limit_us"].isna().all():
        reasons = ", ".join(dict.fromkeys(filter(None, table["reason"])))
        raise ValueError(f"no limit is known: {reasons or 'no spans were recorded'}")
    origin = f"{run.head['kind']}, limits by the roofline"
    device, source = table[["device", "source"]].iloc[0]
    note = f"{device}, bandwidth {source}" if source else device
    return figures_trace.limits(table, origin=origin, note=note)


def _difference(run: "Run", plain: "Run | None", said: dict) -> go.Figure:
    if run.head["method"] == "ar":
        raise ValueError("this run is plain decoding, the yardstick of others")
    if plain is None:
        raise ValueError("no plain run of the same prompts, format and machine is stored beside it")
    pair = [(one.head, {"rounds": one.rounds, "spans": one.spans}) for one in (plain, run)]
    table = difference(*pair, by_level=True)
    return figures_trace.phase_difference(table, names=(plain.label, run.label), **said)


def _kernels(run: "Run", timeline: Timeline, said: dict) -> go.Figure:
    """Of the run itself, else of the first trace in its folder that has some."""
    if len(timeline.kernels):
        return figures_trace.kernels_by_time(by_kernel(timeline), **said)
    for folder in sorted(
        [*run.folder.glob("nsys/*.tables"), *run.folder.glob("traces/*/*.tables")]
    ):
        found = read_trace(folder)
        if len(found.kernels):
            note = f"{said['note']}; trace {folder.parent.name}"
            table = by_kernel(found)
            return figures_trace.kernels_by_time(table, origin="measured under a tool", note=note)
    raise ValueError("none were recorded; on a GPU `hspec trace --kernels` or `--nsys` does that")


def _first_prompt(timeline: Timeline, said: dict) -> go.Figure:
    """The timeline of the first prompt that was measured, its kernels in their phases' colours."""
    ranges = timeline.ranges
    counted = ranges[~ranges["warmup"] & (ranges["kind"] == "round")]
    if not len(counted):
        raise ValueError("the run has no measured rounds")
    prompt = counted["prompt"].min()
    mine = ranges[(ranges["prompt"] == prompt) & ~ranges["warmup"]]
    start, end = int(mine["start_ns"].min()), int(mine["end_ns"].max())
    parts = {"ranges": mine, "launches": timeline.launches, "kernels": _attributed(timeline)}
    parts = {name: _cut(rows, start, end) for name, rows in parts.items()}
    figure = figures_trace.timeline(
        replace(timeline, **parts | {"ranges": nested(parts["ranges"])}),
        (0.0, (end - start) / 1e3),
        _TIMELINE_PX,
        _TIMELINE_BARS,
        origin=said["origin"],
        note=f"{said['note']}; prompt {prompt}",
    )
    # the timeline's own words are for a whole recording
    return figure.update_xaxes(title_text=f"ms since prompt {prompt} began")


def _cut(rows: pd.DataFrame, start: int, end: int) -> pd.DataFrame:
    """What lies between two times, counted from the first."""
    rows = rows[(rows["end_ns"] > start) & (rows["start_ns"] < end)]
    return rows.assign(start_ns=rows["start_ns"] - start, end_ns=rows["end_ns"] - start)


def _attributed(timeline: Timeline) -> pd.DataFrame:
    return attribute(timeline) if len(timeline.kernels) else timeline.kernels


def _texts(run: "Run") -> str:
    """Every output, the first one open."""
    if not run.texts:
        raise ValueError("the run has no outputs")
    parts = []
    for number, prompt in enumerate(run.prompts[:_MOST_TEXTS]):
        start = textwrap.shorten(prompt, 80, placeholder=" …")
        opened = " open" if number == 0 else ""
        parts.append(
            f"<details{opened}><summary>prompt {number}: <code>{html.escape(start)}</code>"
            f"</summary>{run.text_html(number)}</details>"
        )
    if (more := len(run.prompts) - _MOST_TEXTS) > 0:
        parts.append(f"<p class='note'>{more} more outputs lie in the run's folder.</p>")
    return "\n".join(parts)
