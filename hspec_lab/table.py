"""Runs as a table: one row each, as a terminal shows them and as a page; no torch.

A row is a dict: format, method, draft (the code that makes the drafter), run (the folder), what
`breakdown.summary` says, speedup with its interval, mismatches, bugs, and phase_share, the
fraction of each phase of the rounds' time.
"""

import html
import math
import os
import re
from pathlib import Path
from uuid import uuid4

import pandas as pd

from hspec_lab import breakdown, figures
from hspec_lab.lab import Run
from hspec_lab.report import COLUMNS, figures_of, write_report
from hspec_lab.terms import ALL_METHODS, ROUND_PHASES

# of code that would hide what lies below it
_LONG_CODE = 1200


def rows_of(runs: list[Run]) -> list[dict]:
    """One row per run; speed-ups are over an ar run under the same conditions among `runs`."""
    compared = breakdown.speedups([(run.head, run.rounds, run.spans) for run in runs])
    rows = []
    for run, over_ar in zip(runs, compared.to_dict("records"), strict=True):
        key = {"format": run.head["format"], "method": run.head["method"]}
        speedup = {name: over_ar[name] for name in ("speedup", "speedup_low", "speedup_high")}
        verdicts = [entry["verdict"] for entry in run.head["audits"]]
        checked = {"mismatches": len(verdicts), "bugs": verdicts.count("bug")}
        shares = run.breakdown().set_index("phase")["share"]
        phase_share = {"phase_share": {name: float(share) for name, share in shares.items()}}
        about = {"draft": repr(run.config.draft), "run": run.name}
        rows.append(key | run.summary() | speedup | checked | phase_share | about)
    return rows


# heading, one word a line -> how a row writes it
_TABLE = {
    "format": lambda row: row["format"],
    "method": lambda row: row["method"],
    "tokens/s": lambda row: f"{row['tokens_per_s']:.1f}",
    "speed-up": lambda row: _with_interval(row),
    "mean emitted": lambda row: _number(row, "mean_emitted", ".2f"),
    "outside loops": lambda row: _number(row, "mean_emitted_outside_loops", ".2f"),
    "in loops": lambda row: _number(row, "loop_share", ".0%"),
    **{
        phase.replace("_", " "): lambda row, phase=phase: _number(row["phase_share"], phase, ".0%")
        for phase in ROUND_PHASES
    },
    "mis- matches": lambda row: str(row["mismatches"]) + (" BUG" if row.get("bugs") else ""),
}


def table_text(rows: list[dict]) -> str:
    """Return the table as a terminal shows it."""
    headings = [heading.split() for heading in _TABLE]
    top = [words[0] if len(words) > 1 else "" for words in headings]
    lines = [top, [words[-1] for words in headings]]
    lines += [[write(row) for write in _TABLE.values()] for row in rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    written, last = [], top[0]
    for n, cells in enumerate(lines):
        if n > 1 and cells[0] != last:
            written.append("")
        last = cells[0]
        padded = [
            cell.ljust(width) if column < 2 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        written.append("  ".join(padded).rstrip())
    return "\n".join(written)


def write_page(path: Path, rows: list[dict], runs: list[Run], found: dict, **page: str) -> Path:
    """Write the page of some runs, whole or not at all.

    Of one run the page shows everything that it can show, see `report.figures_of`, runs of its
    store beside it; of several what compares them.

    Args:
        rows: of the table; more than runs where something else was measured beside them.
        found: the conditions.
        page: `title` and `note`, as `report.write_report` takes them.
    """
    path = Path(path)
    if len(runs) == 1:
        parts = figures_of(runs[0], list(runs[0].store)) | _as_code(runs[0])
        page = {"heading": "The run", "note": _said_of(runs[0])} | page
    else:
        parts = _compared(rows, runs, found)
    shown = [{name: row[name] for name in COLUMNS if name in row} for row in rows]
    unfinished = path.with_name(f".{path.name}-{uuid4().hex[:8]}")
    try:
        write_report(unfinished, shown, parts, found, **page)
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
    return path


def _compared(rows: list[dict], runs: list[Run], found: dict) -> dict:
    note = f"{found.get('cpu')}, {found.get('threads')} threads, {found.get('date')}"
    drawn = {"origin": runs[0].head["kind"], "note": note}
    bars = pd.DataFrame(rows).rename(columns={"speedup_low": "low", "speedup_high": "high"})
    bars = bars[bars["method"].isin(ALL_METHODS)]
    emitted = [
        run.rounds.loc[~run.rounds["warmup"].astype(bool), ["n_emitted"]].assign(
            method=run.head["method"]
        )
        for run in runs
    ]
    return {
        "Speed-up": figures.speedup_bars(bars, **drawn),
        "Where the time of a token goes": figures.breakdown_bar(
            pd.concat([run.breakdown() for run in runs]), **drawn
        ),
        "Tokens per round": figures.emitted_per_round(pd.concat(emitted), **drawn),
        f"One output: {runs[-1].label}": runs[-1].text_html(0),
    }


def _as_code(run: Run) -> dict[str, str]:
    """What reproduces a run, from its own configuration."""
    names = re.findall(r"\b(Chain|Config|Eagle2|Refine|Static)\(", repr(run.config))
    names = ", ".join(sorted({*names, "run"}))
    code = f"from hspec_lab import {names}\n\nconfig = {run.config!r}\nrun(config)"
    drawn = f"<pre class='code'>{html.escape(code)}</pre>"
    if len(code) > _LONG_CODE:
        words = f"{len(code):,} letters, prompts among them"
        drawn = f"<details><summary>{words}</summary>{drawn}</details>"
    return {"As code": drawn}


def _said_of(run: Run) -> str:
    """The run in a line, below the title."""
    found = run.environment
    where = [found.get("gpu") or found.get("cpu") or found.get("device")]
    where += [f"{found['threads']} threads"] if found.get("threads") else []
    numbers = run.summary()
    counts = f"{numbers['n_emitted']:,} tokens in {numbers['n_rounds']:,} rounds"
    date = str(found.get("date", ""))[:16].replace("T", " ")
    device = ", ".join(str(part) for part in where if part)
    said = [run.label, f"{len(run.prompts)} prompts, {counts}", device, date]
    return "; ".join(filter(None, said))


def _number(fields: dict, name: str, form: str) -> str:
    value = fields.get(name)
    return "-" if value is None or math.isnan(value) else format(value, form)


def _with_interval(row: dict) -> str:
    low, high = (_number(row, f"speedup_{end}", ".2f") for end in ("low", "high"))
    told = _number(row, "speedup", ".2f") + "x"
    return told if low == "-" else f"{told} ({low} to {high})"
