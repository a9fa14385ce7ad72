"""The picture of a timeline: lanes of rounds, levels, launches and streams of a device."""

import html

import pandas as pd
import plotly.graph_objects as go

from hspec_lab import figures
from hspec_lab.figures_trace.lanes import Lanes, in_view, lanes
from hspec_lab.timeline import Timeline

LANE_PX = 30
# a bar's name is written on it where it has room for so many pixels a letter
_LETTER_PX = 7.5
# a bar that touches its neighbour of the same phase is set off by a line where that is seen
_EDGE = "rgba(255,255,255,0.7)"
_EDGE_FROM_PX = 8
_NOTHING = {"x": [None], "base": [0.0], "lane": [0], "edge": [0.0], "hover": [""], "text": [""]}


def timeline(
    timeline: Timeline | Lanes,
    view: tuple[float, float] | None = None,
    width_px: int = 1200,
    most: int = 2000,
    *,
    beyond: float = 0.0,
    origin: str | None = None,
    note: str | None = None,
) -> go.Figure:
    """Draw what happened when, as much of it as a view has pixels for.

    Spans narrower than a pixel are joined to blocks in the colour of the phase with the most time
    in them; hovering tells how many they are and how much time they covered.

    Args:
        timeline: or `lanes(timeline)`, which makes drawing it again a matter of milliseconds.
        view: from, to, in us since the recording began; None: all of it.
        width_px: pixels that the view has.
        most: bars in all.
        beyond: how much more to draw on either side, in views, for who drags the picture.
        origin, note: as of every figure, see `figures`; None: what the timeline says of itself.

    Returns:
        the figure; its `layout.meta` counts `n_spans` and the `n_bars` that show them.
    """
    ready = timeline if isinstance(timeline, Lanes) else lanes(timeline)
    start, end = view if view else (0.0, max(ready.end_ns / 1e3, 1.0))
    more = beyond * (end - start)
    shown = (1e3 * (start - more), 1e3 * (end + more))
    pixel_ns = 1e3 * (end - start) / width_px
    bars = in_view(ready, shown, pixel_ns, most)
    figure = go.Figure(_traces(ready, bars, pixel_ns, (1e3 * start, 1e3 * end)))
    told = caption(ready.timeline)
    origin, note = origin or told["origin"], told["note"] if note is None else note
    if ready.n_left_out:
        note = f"{note}; {ready.n_left_out} spans have no lane: too many overlap".removeprefix("; ")
    figures.lay_out(figure, "What happened when", origin, note, LANE_PX * len(ready.lanes) + 100)
    figure.update_layout(meta={"n_spans": int(bars["n"].sum()), "n_bars": len(bars)})
    _lay_out_lanes(figure, ready, start, end)
    return figure


def caption(timeline: Timeline) -> dict[str, str]:
    """Return `origin` and `note` of figures of a timeline, from what it says of itself."""
    about = timeline.about
    where = about.get("environment")
    where = where if isinstance(where, dict) else {}
    method = " ".join(str(about[name]) for name in ("method", "format") if name in about)
    device = ", ".join(str(where[name]) for name in ("device", "cpu", "gpu") if where.get(name))
    date = str(where.get("date", ""))[:16].replace("T", " ")
    note = "; ".join(part for part in (method, device, date and f"{date} UTC") if part)
    return {"origin": str(about.get("kind") or about.get("source") or "imported"), "note": note}


def _lay_out_lanes(figure: go.Figure, ready: Lanes, start: float, end: float) -> None:
    if ready.lanes:
        figure.update_layout(annotations=(), showlegend=True)
    figure.update_layout(barmode="overlay", hovermode="closest", barcornerradius=0, bargap=0)
    # where there are fewer pixels than was said, names that do not fit are left out
    figure.update_layout(uniformtext={"minsize": 11, "mode": "hide"})
    figure.update_xaxes(
        title_text="ms since the recording began", range=[start / 1e3, end / 1e3], zeroline=False
    )
    figure.update_yaxes(
        tickvals=list(range(len(ready.lanes))),
        ticktext=[html.escape(lane.name) for lane in ready.lanes],
        range=[len(ready.lanes) - 0.4, -0.6],
        fixedrange=True,
        showgrid=False,
        zeroline=False,
    )


def _traces(
    ready: Lanes, bars: pd.DataFrame, pixel_ns: float, view_ns: tuple[float, float]
) -> list[go.Bar]:
    """One trace per colour, also where the view has none of it: a legend should not jump."""
    # what is there at all is at least a pixel wide
    widths = (bars["end_ns"] - bars["start_ns"]).clip(lower=pixel_ns)
    titles, words = _described(ready, bars)
    letters_ns = pd.Series(titles, index=bars.index, dtype=object).str.len() * _LETTER_PX * pixel_ns
    middle = bars["start_ns"] + widths / 2
    # a name stands in the middle of its bar, where a view's edge must not cut it
    free = 2 * (middle - view_ns[0]).clip(upper=view_ns[1] - middle)
    fits = letters_ns <= widths.clip(upper=free)
    bars = bars.assign(
        x=widths / 1e6,
        base=bars["start_ns"] / 1e6,
        edge=(widths >= _EDGE_FROM_PX * pixel_ns).astype(float),
        hover=words,
        text=[title if room else "" for title, room in zip(titles, fits, strict=True)],
    )
    parts = dict(iter(bars.groupby("colour")))
    return [
        _trace(name, colour, parts.get(number, bars.iloc[:0]))
        for number, (name, colour) in enumerate(ready.colours.items())
    ]


def _trace(name: str, colour: str, bars: pd.DataFrame) -> go.Bar:
    # a trace without anything would leave the legend
    bars = bars if len(bars) else pd.DataFrame(_NOTHING)
    return go.Bar(
        name=html.escape(name),
        orientation="h",
        x=bars["x"].to_numpy(),
        base=bars["base"].to_numpy(),
        y=bars["lane"].to_numpy(),
        width=0.82,
        marker={"color": colour, "line": {"color": _EDGE, "width": bars["edge"].to_numpy()}},
        text=bars["text"].tolist(),
        textposition="inside",
        insidetextanchor="middle",
        textangle=0,
        textfont={"size": 11, "color": "#ffffff" if _is_dark(colour) else "#111111"},
        hovertext=bars["hover"].tolist(),
        hovertemplate="%{hovertext}<extra></extra>",
    )


def _is_dark(colour: str) -> bool:
    """Whether white letters are the readable ones; what shows the ground is neither."""
    if not colour.startswith("#"):
        return False
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return 0.299 * red + 0.587 * green + 0.114 * blue <= 120


def _described(ready: Lanes, bars: pd.DataFrame) -> tuple[list[str], list[str]]:
    """What stands on each bar, and what hovering over it tells."""
    titles, words = [""] * len(bars), [""] * len(bars)
    names = list(ready.colours)
    blocks = bars[bars["n"] > 1]
    for at, bar in zip(blocks.index, blocks.itertuples(), strict=True):
        words[at] = _block_words(bar, names[bar.colour])
    for number, part in bars[bars["n"] == 1].groupby("lane"):
        table = ready.lanes[number].table
        rows = getattr(ready.timeline, table).iloc[part["row"].to_numpy()]
        for at, row in zip(part.index, rows.to_dict("records"), strict=True):
            titles[at], words[at] = _span_words(table, row)
    return titles, words


def _block_words(bar, name: str) -> str:
    wide = (bar.end_ns - bar.start_ns) / 1e3
    return (
        f"<b>{bar.n} spans</b>, each too narrow to see<br>most of it {html.escape(name)}<br>"
        f"{time(bar.covered_ns / 1e3)} covered of {time(wide)}"
    )


def _span_words(table: str, row: dict) -> tuple[str, str]:
    took = time((row["end_ns"] - row["start_ns"]) / 1e3)
    if table != "ranges":
        name = html.escape(row["name"])
        lines = [f"<b>{name}</b>"]
        if row.get("phase"):
            lines.append(html.escape(f"{row['phase']}, {row.get('level') or 'no level'}"))
        if row.get("bytes", -1) >= 0:
            lines.append(f"{row['bytes']:,} bytes")
        return name[:60], "<br>".join([*lines, took])
    if row["kind"] == "round":
        title = f"round {row['round']}"
        parts = [f"<b>{title}</b> of prompt {row['prompt']}", took, _counts(row, _ROUND_COUNTS)]
        return title, "<br>".join(part for part in parts if part)
    where = " ".join(row[name] for name in ("level", "scheme") if row[name])
    what = f"<b>{html.escape(row['name'])}</b>{html.escape(where and ', ' + where)}"
    if row["kind"] == "module":
        layer = f", layer {row['layer']}" if row["layer"] >= 0 else ""
        what += f" in {html.escape(row['phase'])}{layer}"
    if row["device_us"] == row["device_us"]:
        took += f" on the host, {time(row['device_us'])} on the device"
    parts = [what, took, _counts(row, _COUNTS), _counts(row, _PLACE)]
    return html.escape(row["name"]), "<br>".join(part for part in parts if part)


_COUNTS = {"n_tokens": "{} tokens in", "n_nodes": "{} nodes", "kv_len": "context {}"}
_ROUND_COUNTS = {
    "n_proposed": "{} proposed",
    "n_accepted": "{} accepted",
    "n_emitted": "{} emitted",
    "kv_len": "context {}",
}
_PLACE = {"prompt": "prompt {}", "round": "round {}"}


def _counts(row: dict, words: dict[str, str]) -> str:
    """What is known of a row, in words."""
    return ", ".join(text.format(row[name]) for name, text in words.items() if row[name] >= 0)


def time(us: float) -> str:
    """A time with its unit, three significant digits."""
    for unit, scale in (("s", 1e6), ("ms", 1e3)):
        if abs(us) >= scale:
            return f"{us / scale:.3g} {unit}"
    return f"{us:.3g} µs"
