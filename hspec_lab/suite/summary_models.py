"""What the suite says of whole models and of tile shapes."""

import pandas as pd

from hspec_lab.suite.line import Line, as_table, not_measured

OF_ROOFLINE = {"llama-3-70b": 0.65, "llama-3-8b": 0.45}
SPEED_UP = 2.78  # of HierSpec over plain decoding, as published
SHOWN_ROWS = (2, 8, 16, 32, 64)
BETWEEN = "between kernels"


def model_lines(curves: pd.DataFrame | None, rounds: pd.DataFrame | None) -> list[Line]:
    """Numbers to reach with whole models."""
    return [*(_of_roofline(curves, *wanted) for wanted in OF_ROOFLINE.items()), _speed_up(rounds)]


def _of_roofline(curves: pd.DataFrame | None, model: str, least: float) -> Line:
    wanted, where = f"{model} w4a16 step: >= {least:.0%} of its memory roofline", "curves"
    row = None
    if curves is not None:
        here = (curves["model"] == model) & (curves["scheme"] == "w4a16-g128")
        here &= (curves["row_invariant"] == "no") & (curves["context"] == 512)
        found = curves[here & (curves["n"].isin([0, 1]))]  # 0: a row without numbers
        row = found.iloc[0] if len(found) else None
    if row is None or pd.isna(row["of_roofline"]):
        return not_measured(wanted, where, row)
    got = f"{row['of_roofline']:.1%} ({row['time_us']:.0f} us)"
    return Line(wanted, got, bool(row["of_roofline"] >= least), where)


def _speed_up(rounds: pd.DataFrame | None) -> Line:
    wanted, where = f"hierspec on 70B, published settings: >= {SPEED_UP}x ar (replayed)", "rounds"
    row = None
    if rounds is not None:
        here = (rounds["target"] == "llama-3-70b") & (rounds["lengths"] == "published")
        found = rounds[here & rounds["method"].isin(["hierspec", ""])]
        row = found.iloc[0] if len(found) else None
    if row is None or pd.isna(row["speed_up"]):
        return not_measured(wanted, where, row)
    got = f"{row['speed_up']:.2f}x ({row['low_speed_up']:.2f}..{row['high_speed_up']:.2f}), "
    got += f"{row['mean_emitted']:.2f} tokens a round"
    return Line(wanted, got, bool(row["speed_up"] >= SPEED_UP), where)


def curves_text(curves: pd.DataFrame | None) -> str:
    """One line a curve: the one-token step, and how it grows."""
    measured = None if curves is None else curves.dropna(subset="time_us")
    if measured is None or not len(measured):
        return "Cost curves: not measured"
    rows = []
    keys = ["model", "scheme", "row_invariant", "context"]
    for key, curve in measured.groupby(keys, sort=False):
        one = curve[curve["n"] == 1].iloc[0]
        times = curve.set_index("n")["time_us"]
        grown = [f"{times[n] / one['time_us']:.2f}" if n in times else "" for n in SHOWN_ROWS]
        model, scheme, invariant, context = key
        name = f"{model} {scheme}" + (" row_invariant" if invariant == "yes" else "")
        step = [f"{one['time_us']:.0f}", f"{one['of_roofline']:.0%}"]
        rows.append([name, str(context), *step, *grown])
    heads = ["model", "context", "T(1) us", "of roofline", *(f"T({n})/T(1)" for n in SHOWN_ROWS)]
    return "Cost curves, one CUDA graph a pass:\n\n" + as_table(heads, rows)


def rounds_text(rounds: pd.DataFrame | None) -> str:
    """One line a method, end to end."""
    measured = None if rounds is None else rounds.dropna(subset="us_per_token")
    if measured is None or not len(measured):
        return "Rounds end to end: not measured"
    phases = ["draft", "verify_intermediate", "verify_target", "accept", "kv_commit", "gap"]
    rows = [
        [
            f"{row['target']} {row['lengths']}",
            row["method"],
            f"{row['speed_up']:.2f} ({row['low_speed_up']:.2f}..{row['high_speed_up']:.2f})",
            f"{row['mean_emitted']:.2f}",
            f"{row['us_per_token']:.0f}",
            *(f"{row[f'{phase}_us']:.0f}" for phase in phases),
        ]
        for _, row in measured.iterrows()
    ]
    heads = ["target, lengths", "method", "times ar", "emitted", "us a token", *phases]
    title = "Rounds end to end, W4A16, lengths replayed (phases: us of a round):"
    return f"{title}\n\n" + as_table(heads, rows)


def gaps_text(gaps: pd.DataFrame | None, n_shown: int = 8) -> str:
    """Where one step's time goes: the longest kernels, and what lies between them."""
    measured = None if gaps is None else gaps.dropna(subset="us")
    if measured is None or not len(measured):
        return "Kernels of a step: not measured"
    rows = []
    for model, step in measured.groupby("model", sort=False):
        shown = pd.concat([step[step["kernel"] != BETWEEN].head(n_shown), step.tail(1)])
        for _, row in shown.iterrows():
            numbers = [f"{row['launches']:.0f}", f"{row['us']:.1f}", f"{row['share']:.1%}"]
            rows.append([model, row["kernel"][:60], *numbers])
    heads = ["model", "kernel", "launches", "us", "share"]
    return "One plain W4A16 step, kernel by kernel:\n\n" + as_table(heads, rows)


def sweep_text(sweep: pd.DataFrame | None) -> str:
    """The fastest tile shape beside the chosen one, for each size."""
    measured = None if sweep is None else sweep.dropna(subset="time_us")
    if measured is None or not len(measured):
        return "Tile shapes: not swept"
    rows = []
    for (R, C, n), found in measured.groupby(["R", "C", "rows"], sort=False):
        best, chosen = found.loc[found["time_us"].idxmin()], found[found["chosen"]]
        lost = chosen["time_us"].iloc[0] / best["time_us"] - 1 if len(chosen) else float("nan")
        tiles = [str(best[name]) for name in ("block_r", "block_t", "splits", "num_stages")]
        rows.append([f"{R}x{C}", str(n), f"{best['time_us']:.1f}", *tiles, f"{lost:.0%}"])
    heads = [
        "layer",
        "rows",
        "best us",
        "block_r",
        "block_t",
        "splits",
        "num_stages",
        "chosen loses",
    ]
    return "Tile shapes of w4a16, the fastest:\n\n" + as_table(heads, rows)
