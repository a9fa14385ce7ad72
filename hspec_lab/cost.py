"""Cost curves: what one forward pass over n tokens takes, and how that grows; no torch.

Times drift between runs on shared machines, so `relative` puts every time in units of the one-token
pass of the same curve, measured interleaved with it.
"""

import pandas as pd

CURVE = ["device", "model", "scheme", "context"]


def relative(table: pd.DataFrame) -> pd.DataFrame:
    """The table with `ratio`, time over the one-token time of the same curve.

    Raises:
        ValueError: a curve has no one-token pass.
    """
    one = table[table["n"] == 1].set_index(CURVE)["time_us"]
    curves = pd.MultiIndex.from_frame(table[CURVE])
    if missing := sorted(set(curves) - set(one.index)):
        raise ValueError(f"no one-token time for {', '.join(map(str, missing[0]))}; measure n = 1")
    return table.assign(ratio=table["time_us"].to_numpy() / one.loc[curves].to_numpy())


def as_text(head: dict, table: pd.DataFrame, shown=(2, 4, 8, 16, 32, 64)) -> str:
    """Lines for a terminal: one curve each, the one-token time, what it reads, how it grows."""
    heads = [f"T({n})/T(1)" for n in shown]
    lines = [f"{'model':28} {'context':>7} {'T(1) us':>10} {'GB/s':>6} " + " ".join(heads)]
    for (_, model, scheme, context), curve in relative(table).groupby(CURVE, sort=False):
        curve, name = curve.set_index("n"), f"{model}@{scheme}"
        time_us = curve["time_us"][1]
        rate = head["weight_bytes"][name] / time_us / 1e3
        ratios = [
            f"{curve['ratio'][n]:{len(head)}.2f}" if n in curve.index else " " * len(head)
            for n, head in zip(shown, heads, strict=True)
        ]
        lines.append(f"{name:28} {context:7} {time_us:10.0f} {rate:6.1f} " + " ".join(ratios))
    ceiling = f"reading memory on this device: {head['read_gb_per_s']:.1f} GB/s"
    return "\n".join([*lines, f"{ceiling} (weights that fit a cache are read faster)"])
