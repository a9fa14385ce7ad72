"""What a trace says, as tables and as a terminal shows them, no line wider than 100 columns."""

import math
from collections.abc import Iterable

import pandas as pd

from hspec_lab.analysis.attribution import attribute, notes_on
from hspec_lab.analysis.critical import critical_path, summed
from hspec_lab.analysis.kernels import by_kernel, by_phase, device_summary, device_table
from hspec_lab.analysis.windows import counted_rounds, has_rounds
from hspec_lab.timeline import Timeline

NO_KERNELS = (
    "no kernels were recorded, so nothing is known of the device; `hspec trace CONFIG --nsys` on a "
    "machine with a GPU records them"
)
_WIDTH = 100
_MOST_KERNELS, _MOST_PHASES = 10, 20
_ABOUT = ("source", "kind", "method", "format", "config_id")
_WHERE = ("device", "gpu", "cpu", "threads", "date")
# column -> heading; what stands before them is as wide as it needs to be
_IN_ROUNDS = {
    "host_us_per_round": "host us",
    "device_us_per_round": "device us",
    "kernels_per_round": "kernels",
    "launches_per_round": "launches",
    "host_us_per_emitted": "host/tok",
    "device_us_per_emitted": "dev./tok",
}
_IN_ALL = {"host_us": "host us", "device_us": "device us"}
_IN_ALL |= {"n_kernels": "kernels", "n_launches": "launches"}


def report(timeline: Timeline) -> dict[str, pd.DataFrame]:
    """Return all tables of a trace.

    Returns:
        phases           `by_phase`
        kernels          `by_kernel`
        summary          `device_summary`, one row
        devices          `device_table`
        critical_path    `critical.summed`
        critical_rounds  `critical_path`
    """
    return _tables(timeline, attribute(timeline))


def as_text(timeline: Timeline) -> str:
    """Return what a terminal shows of a trace: conditions, tables, and notes at the end."""
    attributed = attribute(timeline)
    tables = _tables(timeline, attributed)
    parts = [_header(timeline, tables["summary"].iloc[0]), *_phases(timeline, tables["phases"])]
    if len(timeline.kernels):
        parts += [_kernels(tables["kernels"]), _devices(tables), _critical(tables)]
    notes = [*timeline.notes, *notes_on(attributed)]
    if not len(timeline.kernels):
        notes.append(NO_KERNELS)
    if notes:
        parts.append("\n".join(["Notes", *(line for note in notes for line in _wrapped(note))]))
    return "\n\n".join(part for part in parts if part)


def _tables(timeline: Timeline, attributed: pd.DataFrame) -> dict[str, pd.DataFrame]:
    path = critical_path(timeline, attributed)
    return {
        "phases": by_phase(timeline, attributed),
        "kernels": by_kernel(timeline, attributed),
        "summary": pd.DataFrame([device_summary(timeline, attributed)]),
        "devices": device_table(timeline, attributed),
        "critical_path": summed(path),
        "critical_rounds": path,
    }


def _header(timeline: Timeline, summary: pd.Series) -> str:
    """Where a trace comes from, and how much of it counts."""
    about = timeline.about
    where = about.get("environment")
    where = where if isinstance(where, dict) else {}
    told = [about[name] for name in _ABOUT if name in about]
    found = [f"{name} {where[name]}" for name in _WHERE if where.get(name) is not None]
    wall = f"{summary['wall_us'] / 1e3:,.1f} ms"
    if has_rounds(timeline):
        counted = counted_rounds(timeline)
        n_warmup = int((timeline.ranges["kind"] == "round").sum() - counted.sum())
        emitted = timeline.ranges.loc[counted, "n_emitted"]
        tokens = f", {emitted.sum()} tokens emitted" if (emitted >= 0).all() else ""
        size = f"{counted.sum()} rounds in {wall}{tokens}; {n_warmup} warm-up rounds left out"
    else:
        size = f"no rounds of hspec_lab; all {wall} of the trace count"
    work = f"{len(timeline.kernels)} kernels and copies, {len(timeline.launches)} launches"
    rows = {
        "trace": ", ".join(map(str, told)),
        "where": ", ".join(found),
        "counted": size,
        "recorded": f"{work}, {len(timeline.ranges)} ranges",
    }
    return "\n".join(_cut(f"{name:<10}{row}", _WIDTH) for name, row in rows.items() if row)


def _phases(timeline: Timeline, phases: pd.DataFrame) -> Iterable[str]:
    if not has_rounds(timeline):
        shown = phases.head(_MOST_PHASES)
        more = f", the first {len(shown)} of {len(phases)}" if len(shown) < len(phases) else ""
        yield _phase_table(
            f"Ranges, in all{more}", shown.replace({"phase": {"": "(none)"}}), _IN_ALL
        )
        return
    # what lies outside rounds has nothing per round
    outside = phases["phase"].isin(["prefill", ""])
    yield _phase_table("Phases, per round and per emitted token", phases[~outside], _IN_ROUNDS)
    rest = phases[outside].replace({"phase": {"": "elsewhere"}})
    yield _phase_table("Outside rounds, in all", rest, _IN_ALL)


def _phase_table(title: str, phases: pd.DataFrame, columns: dict[str, str]) -> str:
    rows = [
        [_cut(row["phase"], 40 if columns is _IN_ALL else 20), _cut(row["level"], 12)]
        + [_number(row[name]) for name in columns]
        for row in phases.to_dict("records")
    ]
    return _aligned(title, ["phase", "level", *columns.values()], rows, left=2)


def _kernels(kernels: pd.DataFrame) -> str:
    rows = []
    for row in kernels.head(_MOST_KERNELS).to_dict("records"):
        numbers = [str(row["n"]), _number(row["total_us"] / 1e3), f"{row['share']:.1%}"]
        names = [_cut(row["name"], 34), _cut(row["phases"], 22)]
        rows.append([*names, *numbers, _number(row["median_us"])])
    shown = f"the first {len(rows)} of {len(kernels)}" if len(rows) < len(kernels) else "all"
    names = ["name", "launched in", "n", "ms", "share", "median us"]
    return _aligned(f"Kernels and copies by time, {shown}", names, rows, left=2)


def _devices(tables: dict[str, pd.DataFrame]) -> str:
    """Busy, idle, host bound and overlap of each device, and how much there is a round."""
    names = ["device", "streams", "busy ms", "share", "idle ms", "share"]
    names += ["host bound", "overlap ms", "kernels", "copies"]
    rows = []
    for row in tables["devices"].to_dict("records"):
        told = [str(row["device"]), str(row["n_streams"])]
        for name in ("busy", "idle"):
            told += [_number(row[f"{name}_us"] / 1e3), _share(row[f"{name}_share"])]
        told += [_share(row["host_bound_share"]), _number(row["stream_overlap_us"] / 1e3)]
        rows.append([*told, str(row["n_kernels"]), str(row["n_copies"])])
    table = _aligned("Devices, inside what counts", names, rows, left=1)
    summary = tables["summary"].iloc[0]
    if math.isnan(summary["launches_per_round"]):
        return table
    kernels, launches = (summary[f"{name}_per_round"] for name in ("kernels", "launches"))
    return f"{table}\n  a round makes {launches:.1f} launches and runs {kernels:.1f} kernels"


def _critical(tables: dict[str, pd.DataFrame]) -> str:
    rows = [
        [_cut(row["phase"] or "(none)", 40), _cut(row["level"], 12), row["where"]]
        + [_number(row["us"] / 1e3), _number(row["us_per_round"]), _share(row["share"])]
        for row in tables["critical_path"].head(_MOST_PHASES).to_dict("records")
    ]
    names = ["phase", "level", "where", "ms", "us/round", "share"]
    return _aligned("Critical path: what each instant went to", names, rows, left=3)


def _aligned(title: str, names: list[str], rows: list[list[str]], left: int) -> str:
    """A table with its title, the first columns flush left; "" without rows."""
    if not rows:
        return ""
    lines = [names, *rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    written = [title]
    for cells in lines:
        padded = [
            cell.ljust(width) if column < left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        written.append("  " + "  ".join(padded).rstrip())
    return "\n".join(written)


def _number(value: float) -> str:
    """In eight characters, "-" for what is not known."""
    if math.isnan(value):
        return "-"
    forms = [",.0f"] if float(value).is_integer() else [",.1f", ",.0f"]
    told = [format(value, form) for form in (*forms, ".2e")]
    return next((text for text in told if len(text) <= 8), told[-1])


def _share(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.1%}"


def _cut(text: str, width: int) -> str:
    """On one line, no wider than that, without anything that a terminal would obey."""
    text = "".join(c if c.isprintable() else "?" for c in text[: width + 1])
    return text if len(text) <= width else text[: width - 3] + "..."


def _wrapped(note: str) -> list[str]:
    """A note as lines; the first has a dash before it."""
    lines, words = [], _cut(note, 10 * _WIDTH).split()
    for word in words:
        word = _cut(word, _WIDTH - 4)
        if lines and len(lines[-1]) + 1 + len(word) <= _WIDTH - 4:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return [("    " if n else "  - ") + line for n, line in enumerate(lines)]
