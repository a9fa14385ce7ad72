"""One self-contained HTML page: a table of runs, figures and the conditions they ran under.

The page opens offline, years later, in light and in dark: plotly.js is inlined once, nothing is
fetched, and the rows lie in it once more as JSON (`<script id="rows">`) for whoever wants them.
"""

import html
import json
import math
from pathlib import Path

import pandas as pd
import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from hspec_lab.figures import PHASE_COLOURS
from hspec_lab.report.frame import PAGE, PRINTING, STYLE
from hspec_lab.store import json_value
from hspec_lab.terms import ROUND_PHASES

# column -> (heading, how a number is written)
COLUMNS = {
    "format": ("format", str),
    "method": ("method", str),
    "tokens_per_s": ("tokens/s", "{:.1f}".format),
    "speedup": ("speed-up", "{:.2f}×".format),
    "mean_emitted": ("mean emitted", "{:.2f}".format),
    "mean_emitted_outside_loops": ("… outside loops", "{:.2f}".format),
    "loop_share": ("loop share", "{:.0%}".format),
    "mismatches": ("greedy mismatches", "{:.0f}".format),
    "phase_share": ("share of each phase", None),
}


def write_report(
    path: str | Path,
    rows: pd.DataFrame | list[dict],
    figures: dict[str, go.Figure | str],
    environment: dict,
    *,
    title: str = "Does speculation still pay at low bits?",
    note: str = "",
    heading: str = "Every format and method",
) -> Path:
    """Write the page and return where it lies.

    Args:
        path: the file to write; folders on the way are made.
        rows: one per format and method, with the columns of `COLUMNS`; absent ones are left out,
            further ones appended.  `phase_share` is a dict phase -> fraction.
        figures: heading -> plotly figure, or ready HTML such as `figures.coloured_text`.
        environment: the conditions; nested dicts are shown as `outer.inner`.
        note: a sentence or two below the title.
        heading: above the table of rows.
    """
    rows = rows.to_dict("records") if isinstance(rows, pd.DataFrame) else list(rows)
    parts = [
        f"<h1>{html.escape(title)}</h1>",
        f"<p class='note'>{html.escape(note)}</p>" if note else "",
        f"<h2>{html.escape(heading)}</h2>",
        _rows_table(rows),
        _legend(rows),
        _words(rows),
        *(_section(heading, figure) for heading, figure in figures.items()),
        "<h2>Conditions</h2>",
        _conditions(environment),
    ]
    plain = json_value({"rows": rows, "environment": environment})
    data = json.dumps(plain, allow_nan=False, default=str)
    data = data.replace("<", "\\u003c")
    page = PAGE.format(
        title=html.escape(title),
        style=STYLE,
        plotly=get_plotlyjs(),
        body="\n".join(parts),
        printing=PRINTING,
        data=data,
    )
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")
    return path


def _rows_table(rows: list[dict]) -> str:
    names = [name for name in COLUMNS if any(name in row for row in rows)]
    names += list(dict.fromkeys(name for row in rows for name in row if name not in COLUMNS))
    best = max((row.get("speedup") or 0 for row in rows), default=0)
    headings = "".join(
        f"<th{_side(name)}>{html.escape(COLUMNS.get(name, (name,))[0])}</th>" for name in names
    )
    lines, last = [], None
    for row in rows:
        starts = " class='starts'" if last is not None and row.get("format") != last else ""
        last = row.get("format")
        cells = "".join(
            f"<td{_side(name)}>{_cell(name, row.get(name), best)}</td>" for name in names
        )
        lines.append(f"<tr{starts}>{cells}</tr>")
    return (
        f"<div class='wide'><table class='rows'><thead><tr>{headings}</tr></thead>"
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def _cell(name: str, value, best: float) -> str:
    if name == "phase_share":
        return _phase_strip(value or {})
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    written = COLUMNS.get(name, (name, str))[1](value)
    wins = name == "speedup" and value == best > 1
    return f"<b>{html.escape(written)}</b>" if wins else html.escape(written)


def _phase_strip(shares: dict[str, float]) -> str:
    pieces = "".join(
        f"<i style='width:{shares[phase] * 100:.2f}%;background:{PHASE_COLOURS[phase]}' "
        f"title='{phase} {shares[phase]:.1%}'></i>"
        for phase in ROUND_PHASES
        if shares.get(phase, 0) > 0
    )
    told = ", ".join(f"{phase} {shares[phase]:.0%}" for phase in ROUND_PHASES if phase in shares)
    return f"<div class='strip' role='img' aria-label='{told}' title='{told}'>{pieces}</div>"


def _legend(rows: list[dict]) -> str:
    found = [p for p in ROUND_PHASES if any((row.get("phase_share") or {}).get(p) for row in rows)]
    keys = "".join(
        f"<span><i style='background:{PHASE_COLOURS[phase]}'></i>{phase}</span>" for phase in found
    )
    return f"<p class='legend'>{keys}</p>" if keys else ""


def _words(rows: list[dict]) -> str:
    words = [
        "Speed-up is over plain decoding (ar) of the same format; emitted counts tokens per round."
    ]
    if any("loop_share" in row for row in rows):
        words.append(
            "A token is in a loop when the 16-gram it ends already stands in the output; "
            "loops flatter every drafter, hence the columns beside."
        )
    if any("mismatches" in row for row in rows):
        words.append("Mismatches are places where the text differs from plain greedy decoding.")
    return f"<p class='note'>{' '.join(words)}</p>"


def _section(heading: str, figure: go.Figure | str) -> str:
    if isinstance(figure, str):
        drawn = figure
    else:
        # plotly 6 would name its server: the page links to nothing
        config = {"responsive": True, "displaylogo": False, "plotlyServerURL": ""}
        drawn = figure.to_html(full_html=False, include_plotlyjs=False, config=config)
    return f"<section><h2>{html.escape(heading)}</h2>{drawn}</section>"


def _conditions(environment: dict) -> str:
    lines = "".join(
        f"<tr><th>{html.escape(name)}</th><td>{html.escape(str(value))}</td></tr>"
        for name, value in _flat(environment)
    )
    return f"<div class='wide'><table class='conditions'>{lines}</table></div>"


def _flat(fields: dict, prefix: str = ""):
    for name, value in fields.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield (
                f"{prefix}{name}",
                ", ".join(map(str, value)) if isinstance(value, list) else value,
            )


def _side(name: str) -> str:
    return " class='text'" if name in ("format", "method", "phase_share") else ""
