"""What a measured suite says: every number to reach, what was got, and where; needs no torch."""

from pathlib import Path

import pandas as pd

from hspec_lab.suite.folder import read_head, read_table
from hspec_lab.suite.line import Line, as_table, not_measured
from hspec_lab.suite.summary_models import (
    curves_text,
    gaps_text,
    model_lines,
    rounds_text,
    sweep_text,
)

# (R, C) of the layers, and the rows, whose numbers are to be reached: measured first
WANTED_SIZES = ((4096, 14336), (8192, 28672))
WANTED_ROWS = (1, 16, 64)
OF_READ = 0.8
MOST_GROWTH = {16: 1.1, 64: 2.0}  # rows -> T(rows) / T(1)
SHOWN_FAILURES = 10

Tables = dict[str, pd.DataFrame]


def as_text(folder: Path | str) -> str:
    """What a folder's tables say, as plain text with Markdown tables.

    Raises:
        ValueError: the folder holds no suite, or a file of it is damaged.
    """
    head = read_head(Path(folder))
    names = ("kernels_right", "ceilings", "matmuls", "rounds", "curves", "gaps", "sweep")
    tables = {name: read_table(Path(folder), name) for name in names}
    tables = {name: table for name, table in tables.items() if table is not None}
    unfinished = {name for name, n in head.get("items", {}).items() if n["done"] < n["all"]}
    found = lines(tables, unfinished) + model_lines(tables.get("curves"), tables.get("rounds"))
    sections = [
        _conditions(head),
        _verdicts(found),
        _failures(tables),
        rounds_text(tables.get("rounds")),
        curves_text(tables.get("curves")),
        gaps_text(tables.get("gaps")),
        sweep_text(tables.get("sweep")),
        _ratios(tables),
        _ceilings(tables.get("ceilings")),
    ]
    return "\n\n".join(section for section in sections if section)


def lines(tables: Tables, unfinished: set[str] = frozenset()) -> list[Line]:
    """Every number to reach with single kernels.

    Args:
        tables: `kernels_right` and `matmuls`, those that there are.
        unfinished: parts with items left: what is to hold of all of them is not met yet.
    """
    found = [_so_far(_right(tables.get("kernels_right")), "kernels_right" in unfinished)]
    matmuls = tables.get("matmuls")
    found += [_of_read(matmuls, size) for size in WANTED_SIZES]
    found += [_growth(matmuls, size, rows) for rows in MOST_GROWTH for size in WANTED_SIZES]
    return [*found, _so_far(_against_int4(matmuls), "matmuls" in unfinished)]


def _so_far(line: Line, unfinished: bool) -> Line:
    if not unfinished or line.met is None:
        return line
    return line._replace(got=f"so far {line.got}", met=None if line.met else False)


def _right(table: pd.DataFrame | None) -> Line:
    wanted, where = "every kernel equals its definition", "kernels_right"
    tried = None if table is None else table["ok"].dropna()
    if tried is None or not len(tried):
        return not_measured(wanted, where)
    n, unfit = int(tried.sum()), len(table) - len(tried)
    cannot = f", {unfit} cannot run on this device" if unfit else ""
    return Line(wanted, f"{n} of {len(tried)}{cannot}", n == len(tried), where)


def _of_read(table: pd.DataFrame | None, size: tuple[int, int]) -> Line:
    wanted = f"w4a16, one row: >= {OF_READ:.0%} of reading the same bytes"
    row = _row(table, size, 1, "w4a16")
    if row is None or pd.isna(row["of_read"]):
        return not_measured(wanted, _named(size), row)
    got = f"{row['of_read']:.1%} ({row['time_us']:.1f} us, {row['gb_per_s']:.0f} GB/s)"
    return Line(wanted, got, bool(row["of_read"] >= OF_READ), _named(size))


def _growth(table: pd.DataFrame | None, size: tuple[int, int], rows: int) -> Line:
    most = MOST_GROWTH[rows]
    wanted = f"w4a16, T({rows})/T(1) <= {most}"
    one, many = (_row(table, size, n, "w4a16") for n in (1, rows))
    for row in (one, many):
        if row is None or pd.isna(row["time_us"]):
            return not_measured(wanted, _named(size), row)
    ratio = many["time_us"] / one["time_us"]
    got = f"{ratio:.2f} ({one['time_us']:.1f} to {many['time_us']:.1f} us)"
    return Line(wanted, got, bool(ratio <= most), _named(size))


def _against_int4(table: pd.DataFrame | None) -> Line:
    wanted = "w4a16 not slower than PyTorch's int4 operator, 1..64 rows"
    pairs = _pairs(table, "torch_int4")
    pairs = pairs[pairs["rows"] <= 64]
    if not len(pairs):
        theirs = None if table is None else table[table["contender"] == "torch_int4"]
        row = theirs.iloc[0] if theirs is not None and len(theirs) else None
        return not_measured(wanted, "all layers", row)
    worst = pairs.loc[pairs["ratio"].idxmin()]
    slowest = 1 / worst["ratio"]
    at = f"{worst['shape']}, {worst['rows']} rows"
    got = f"at most {slowest:.2f} of its time, over {len(pairs)} measured; worst at {at}"
    return Line(wanted, got, bool(slowest <= 1), "all layers")


def _named(size: tuple[int, int]) -> str:
    return f"matmuls {size[0]}x{size[1]}"


def _row(table: pd.DataFrame | None, size: tuple[int, int], rows: int, contender: str):
    """The one row of a layer, a row count and a contender; None where there is none."""
    if table is None:
        return None
    here = (table["R"] == size[0]) & (table["C"] == size[1]) & (table["rows"] == rows)
    found = table[here & (table["contender"] == contender)]
    return found.iloc[0] if len(found) else None


def _pairs(table: pd.DataFrame | None, other: str) -> pd.DataFrame:
    """Where both were measured in the same turns: `ratio` of the other's time to w4a16's."""
    keys = ["shape", "R", "C", "rows"]
    if table is None:
        return pd.DataFrame(columns=[*keys, "ratio"])
    measured = table.dropna(subset="time_us")
    ours, theirs = (
        measured[measured["contender"] == name][[*keys, "time_us"]] for name in ("w4a16", other)
    )
    both = ours.merge(theirs, on=keys, suffixes=("", "_other"))
    return both.assign(ratio=both["time_us_other"] / both["time_us"])


def _conditions(head: dict) -> str:
    said = head["conditions"]
    names = ("gpu", "capability", "cuda", "torch", "triton", "commit", "date")
    known = [f"{name} {said[name]}" for name in names if said.get(name)]
    clocks = [f"{name} {value}" for name, value in (said.get("clocks") or {}).items()]
    done = [f"{name} {n['done']} of {n['all']}" for name, n in head.get("items", {}).items()]
    note = " TINY: these numbers mean nothing." if said.get("tiny") else ""
    about = f"GPU suite on {said['device']}: {', '.join([*known, *clocks])}.{note}"
    return f"{about}\nItems measured: {', '.join(done) or 'none'}."


def _verdicts(found: list[Line]) -> str:
    words = {True: "met", False: "MISSED", None: "open"}
    rows = [[line.wanted, line.got, words[line.met], line.where] for line in found]
    return as_table(["wanted", "got", "verdict", "where"], rows)


def _failures(tables: Tables) -> str:
    table = tables.get("kernels_right")
    failed = None if table is None else table[~table["ok"].fillna(True)]
    if failed is None or not len(failed):
        return ""
    rows = [
        [row["operation"], row["case"], row["dtype"], f"{row['error']:.3g}", row["note"]]
        for _, row in failed.head(SHOWN_FAILURES).iterrows()
    ]
    title = f"Kernels that were wrong or failed ({len(failed)}, the first {len(rows)} here):"
    return f"{title}\n\n" + as_table(["operation", "case", "dtype", "error", "note"], rows)


def _ratios(tables: Tables) -> str:
    """Median over layers of other times over w4a16's, by row count."""
    others = {
        "row_invariant": "w4a16 row_invariant",
        "PyTorch int4": "torch_int4",
        "gemlite": "gemlite",
        "PyTorch 16 bits": "torch_bf16",
    }
    medians = pd.DataFrame(
        {
            title: _pairs(tables.get("matmuls"), name).groupby("rows")["ratio"].median()
            for title, name in others.items()
        }
    )
    if not len(medians):
        return "Cost of row-invariance: not measured"
    rows = [
        [str(n), *("not measured" if pd.isna(ratio) else f"{ratio:.2f}" for ratio in row)]
        for n, row in zip(medians.index, medians.to_numpy(), strict=True)
    ]
    title = "Times over those of w4a16, median of the layers (row_invariant: what it costs):"
    return f"{title}\n\n" + as_table(["rows", *medians.columns], rows)


def _ceilings(table: pd.DataFrame | None) -> str:
    if table is None or not len(table):
        return "Ceilings: not measured"
    rows = []
    for (what, n_bytes), found in table.groupby(["what", "n_bytes"], sort=False):
        best = found.loc[found["time_us"].idxmin()] if found["time_us"].notna().any() else None
        if best is None:
            rows.append([what, "", f"not measured: {found.iloc[0]['note']}", ""])
            continue
        size = f"{n_bytes / 1e6:.0f} MB" if n_bytes else ""
        rate = f"{best['rate']:.0f} {best['unit']}" if best["unit"] else ""
        rows.append([what, size, f"{best['time_us']:.2f} us", rate])
    return "Ceilings:\n\n" + as_table(["what", "size", "time", "rate"], rows)
