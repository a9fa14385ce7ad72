"""Figures of how wide a pass may be; same rules as `figures`: tables in, nothing measured."""

import html

import pandas as pd
import plotly.graph_objects as go

from hspec_lab import figures
from hspec_lab.device import Device
from hspec_lab.figures import INK
from hspec_lab.figures_bits import format_colour

_DASHES = ("solid", "dash", "dot", "dashdot", "longdash")
_MARKERS = ("circle", "square", "diamond", "triangle-up", "x")
_ROOF_DASHES = ("solid", "dash", "dot")


def device_roofline(
    table: pd.DataFrame, device: Device, *, origin: str = "measured", note: str = ""
) -> go.Figure:
    """Draw what passes reached under the roof of their device, a line a curve from n = 1 on.

    Args:
        table: columns `model`, `scheme`, `n`, `intensity`, `rate`, `operand`, see
            `verify_width.attained`.
        device: whose bandwidth and peaks make the roof.
    """
    figure = go.Figure()
    if len(table):
        _add_roofs(figure, table, device)
    for number, ((model, scheme), rows) in enumerate(table.groupby(["model", "scheme"])):
        rows = rows.sort_values("n")
        name = html.escape(f"{model}@{scheme}")
        names = [f"n = {n}" if n in (rows["n"].min(), rows["n"].max()) else "" for n in rows["n"]]
        figure.add_scatter(
            name=name,
            x=list(rows["intensity"]),
            y=[rate / 1e9 for rate in rows["rate"]],
            mode="lines+markers+text",
            text=names,
            textposition="bottom right",
            textfont={"size": 11},
            line={"color": format_colour(scheme), "width": 2, "dash": _DASHES[number % 5]},
            marker={"symbol": _MARKERS[number % 5], "size": 9},
            customdata=list(rows["n"]),
            hovertemplate=(
                "n = %{customdata}: %{y:.3~g} GFLOP/s at %{x:.3~g} operations a byte"
                f"<extra>{name}</extra>"
            ),
        )
    what = "What passes over n tokens reach, under the device's roof"
    figures.lay_out(figure, what, origin, note, 440)
    figure.update_xaxes(title_text="operations a byte read", type="log", dtick=1)
    figure.update_yaxes(title_text="GFLOP/s", type="log", dtick=1)
    return figure


def _add_roofs(figure: go.Figure, table: pd.DataFrame, device: Device) -> None:
    """The slope of memory, then the flat part of every operand in the table."""
    low, high = table["intensity"].min() / 1.6, table["intensity"].max() * 3
    for number, operand in enumerate(sorted(set(table["operand"]))):
        peak = device.peak(operand)
        corner = peak / device.bytes_per_s
        x = [low, *([corner] if low < corner < high else []), high]
        figure.add_scatter(
            name=f"roof, {operand}: {peak / 1e12:.2g} TFLOP/s, {device.bytes_per_s / 1e9:.3g} GB/s",
            x=x,
            y=[min(peak, device.bytes_per_s * at) / 1e9 for at in x],
            mode="lines",
            line={"color": INK, "width": 2, "dash": _ROOF_DASHES[number % 3]},
            hoverinfo="skip",
        )


def width_bars(table: pd.DataFrame, *, origin: str = "roofline", note: str = "") -> go.Figure:
    """Draw the verify width of each scheme on each device.

    Args:
        table: columns `device`, `format`, `width`, `bound_by`, see `verify_width.widths`.
    """
    figure = go.Figure()
    table = table.assign(device=table["device"].map(html.escape))
    devices = list(dict.fromkeys(table["device"]))
    for format in dict.fromkeys(table["format"]):
        rows = table[table["format"] == format].set_index("device").reindex(devices).dropna()
        figure.add_bar(
            name=format,
            y=list(rows.index),
            x=list(rows["width"]),
            orientation="h",
            marker={"color": format_colour(format), "line": {"width": 0}},
            text=[f"{int(width)}" for width in rows["width"]],
            textposition="outside",
            textfont={"size": 11},
            cliponaxis=False,
            customdata=list(rows["bound_by"]),
            hovertemplate=(
                f"%{{x}} tokens, one more waits for %{{customdata}}<extra>{format}, %{{y}}</extra>"
            ),
        )
    what = "Tokens verified within 1.5 one-token passes"
    figures.lay_out(figure, what, origin, note, 84 * len(devices) + 100)
    figure.update_xaxes(
        title_text="tokens of a pass, on a logarithmic scale",
        type="log",
        tickvals=[4, 8, 16, 32, 64, 128, 256, 512],
        range=[0.6, 2.8],
    )
    figure.update_yaxes(
        categoryorder="array",
        categoryarray=devices,
        autorange="reversed",
        showgrid=False,
        ticksuffix=" ",
    )
    figure.update_layout(legend_traceorder="normal", bargap=0.28)
    return figure
