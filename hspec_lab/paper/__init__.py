"""The paper, side by side: its published speed-ups and ours, fitted and predicted apart; no torch.

A model of a GPU with few parameters (`engine`) is fitted to some of the published numbers
(`fitting`) and predicts the others (`comparison`), HierSpec among them (`hierarchy`).  Errors are
of predicted cells only.  Sources of all numbers lie in profiles/paper.

cells(), parameters(), summary(), take_away()
"""

from dataclasses import asdict, replace

import numpy as np
import pandas as pd

from hspec_lab.paper.comparison import COLUMNS, KINDS, LARGE_ERROR, ORIGIN, ROLES, cells
from hspec_lab.paper.engine import Engine, Fitted, Kernel, published, stored
from hspec_lab.paper.fitting import FITS, fit, misfits

__all__ = [
    "COLUMNS",
    "FITS",
    "KINDS",
    "LARGE_ERROR",
    "ORIGIN",
    "ROLES",
    "Engine",
    "Fitted",
    "Kernel",
    "as_text",
    "assumptions",
    "cells",
    "fit",
    "largest",
    "misfits",
    "note",
    "parameters",
    "published",
    "reasons",
    "stored",
    "summary",
    "take_away",
]


def parameters(fitted: Fitted | None = None) -> pd.DataFrame:
    """What was fitted, and on what.

    Returns:
        parameter, value, unit, fitted_on; of all parameters fitted on the same: n_parameters,
        n_numbers, and error, the median over these numbers.
    """
    found, rows = fitted or stored(), []
    for name, off in misfits(found, published()).items():
        counts = (name, len(FITS[name]), len(off), float(np.median(np.abs(np.expm1(off)))))
        rows += [(key, asdict(found)[key], unit, *counts) for key, unit in FITS[name].items()]
    columns = ["parameter", "value", "unit", "fitted_on", "n_parameters", "n_numbers", "error"]
    return pd.DataFrame(rows, columns=columns)


def summary(table: pd.DataFrame | None = None) -> pd.DataFrame:
    """Errors by kind of cell, and of the paper's cells together.

    Args:
        table: as `cells` gives it; None: that of the stored parameters.

    Returns:
        kind, n_fitted, n_predicted; of predicted cells median_error, worst_error (with its sign)
        and worst, which cell that is.  The last row, `all of the paper`, has no replications.
    """
    table = cells() if table is None else table
    groups = [(kind, table[table["kind"] == kind]) for kind in KINDS]
    groups.append(("all of the paper", table[table["kind"] != "replication"]))
    rows = []
    for kind, group in groups:
        predicted = group[group["role"] == "predicted"]
        worst = predicted.loc[predicted["error"].abs().idxmax()]
        rows.append(
            {
                "kind": kind,
                "n_fitted": int((group["role"] == "fitted").sum()),
                "n_predicted": len(predicted),
                "median_error": float(predicted["error"].abs().median()),
                "worst_error": float(worst["error"]),
                "worst": f"{worst['column']}: {worst['scheme']}",
            }
        )
    return pd.DataFrame(rows)


# what the model assumes of kernels -> what is assumed instead to see its weight
_OTHERWISE = {
    "no program waits for its reads": {"column_tile": 0},
    "m16n8k16 reaches the full int8 peak": {"depth_share": 1.0},
}


def assumptions() -> pd.DataFrame:
    """How much of the agreement hangs on what is assumed of kernels: each assumption replaced.

    All parameters are fitted anew each time.

    Returns:
        assumed; fitted_error (median over the fitted quantization-only bars), median_error and
        worst_error of the paper's predicted cells.
    """
    numbers, rows = published(), []
    for name, other in {"as it is": {}, **_OTHERWISE}.items():
        kernels = {key: replace(kernel, **other) for key, kernel in numbers["kernels"].items()}
        changed = numbers | {"kernels": kernels}
        table = cells(fit(changed), changed)
        bars = table[(table["kind"] == KINDS[0]) & (table["role"] == "fitted")]
        whole = summary(table).iloc[-1]
        errors = float(bars["error"].abs().median()), whole["median_error"], whole["worst_error"]
        rows.append((name, *errors))
    return pd.DataFrame(rows, columns=["assumed", "fitted_error", "median_error", "worst_error"])


def largest(n: int = 8, table: pd.DataFrame | None = None) -> pd.DataFrame:
    """The n predicted cells that are furthest off, worst first, with their reasons."""
    table = cells() if table is None else table
    predicted = table[table["role"] == "predicted"]
    order = predicted["error"].abs().sort_values(ascending=False).index[:n]
    return predicted.loc[order].reset_index(drop=True)


def reasons(n: int = 6) -> str:
    """The n predicted cells that are furthest off and what drives each, as a Markdown list."""
    return "\n".join(
        f"- **{row.error:+.0%}** {row.column}, {row.scheme}, {row.kind} "
        f"({row.ours:.2f} for {row.paper:.2f}): {row.reason}."
        for row in largest(n).itertuples()
    )


def note() -> str:
    """Under which conditions all this holds, as figures say it."""
    counts = parameters().drop_duplicates("fitted_on")
    return (
        f"{counts['n_parameters'].sum()} parameters fitted on {counts['n_numbers'].sum()} numbers; "
        "batch 1, greedy, MT-Bench, Llama-3-Instruct; arXiv 2505.22179"
    )


def take_away() -> str:
    """The comparison in one sentence, as Markdown."""
    counts, errors = parameters().drop_duplicates("fitted_on"), summary().set_index("kind")
    whole, table = errors.loc["all of the paper"], cells()
    hierspec = table[table["scheme"].str.endswith("HierSpec over ar")].iloc[0]
    return (
        f"With {counts['n_parameters'].sum()} parameters fitted on {counts['n_numbers'].sum()} "
        f"published numbers, the other {whole['n_predicted']} of the paper's cells are predicted "
        f"with a median error of {whole['median_error']:.1%} (worst {whole['worst_error']:+.0%}, "
        f"{whole['worst']}), HierSpec's headline at {hierspec['ours']:.2f}x for "
        f"{hierspec['paper']:.2f}x."
    )


def as_text() -> str:
    """Lines for a terminal: parameters, errors by kind, the cells furthest off, the sentence."""
    shown = ["column", "scheme", "kind", "paper", "ours", "error"]
    tables = parameters(), summary(), largest()[shown]
    texts = [table.round(3).to_string(index=False) for table in tables]
    return "\n\n".join([*texts, take_away()])
