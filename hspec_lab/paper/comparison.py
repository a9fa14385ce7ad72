"""Every published cell beside ours, with its error and what drives it.

Roles: *unit* is what a column's bars are relative to; *fitted* cells were seen by a parameter;
*predicted* ones were not, and a bar is predicted as soon as one of its two factors is.
"""

from dataclasses import replace

import pandas as pd

from hspec_lab.paper import fitting, hierarchy
from hspec_lab.paper.engine import Engine, Fitted, engine_of, published, stored

KINDS = (
    "quantization only",
    "with EAGLE-2",
    "gain of EAGLE-2",
    "verification",
    "HierSpec",
    "replication",
)
ROLES = ("unit", "fitted", "predicted")
ORIGIN = "roofline, calibrated on the fitted cells"
COLUMNS = ("column", "scheme", "kind", "paper", "ours", "error", "role", "reason", "origin")
# an error above which a cell's reason says more than what it consists of
LARGE_ERROR = 0.25


def cells(fitted: Fitted | None = None, numbers: dict | None = None) -> pd.DataFrame:
    """The published cells.

    Args:
        fitted: parameters; None: as stored.
        numbers: None: `published()`.

    Returns:
        one row per cell: column (model and device), scheme, kind (see `KINDS`), paper (what was
        published), ours, error (ours / paper - 1), role (see `ROLES`), reason, origin.
    """
    found, numbers = fitted or stored(), numbers or published()
    rows = []
    for name, column in numbers["columns"].items():
        for scheme in column["bars"]:
            rows += _bars(numbers, name, scheme, found)
    for more in (_verification, _hierspec, _chains, _frequent):
        rows += more(numbers, found)
    table = pd.DataFrame(
        rows, columns=[name for name in COLUMNS if name not in ("error", "origin")]
    )
    table["error"], table["origin"] = table["ours"] / table["paper"] - 1, ORIGIN
    return table[list(COLUMNS)]


def _bars(numbers: dict, name: str, scheme: str, fitted: Fitted) -> list[tuple]:
    """A format's three cells in a column of figure 1."""
    column, ours = numbers["columns"][name], engine_of(numbers, name, fitted)
    alone, both, gained = column["bars"][scheme]
    unit_us = ours.pass_us(ours.kernels[column["unit"]])
    our_alone = unit_us / ours.pass_us(ours.kernels[scheme])
    our_gain = fitting.gain(numbers, name, scheme, fitted)
    is_unit = scheme == column["unit"]
    role = "fitted" if is_unit and name in (fitting.SMALL, fitting.LARGE) else "predicted"
    alone_role = "fitted" if name == fitting.SMALL else "predicted"
    product = (
        f"{our_alone / alone - 1:+.0%} from the step, {our_gain / gained - 1:+.0%} from the gain"
    )
    if abs(our_alone * our_gain / both - 1) > LARGE_ERROR:
        product += _unhidden(ours, column, scheme)
    step = f"{_step(ours, scheme)}; the bar asks for {unit_us / alone / 1e3:.1f} ms"
    return [
        (name, scheme, KINDS[0], alone, our_alone, "unit" if is_unit else alone_role, step),
        (name, scheme, KINDS[1], both, our_alone * our_gain, role, product),
        (name, scheme, KINDS[2], gained, our_gain, role, _verify(ours, column, scheme)),
    ]


def _step(ours: Engine, scheme: str) -> str:
    parts = ours.parts(ours.kernels[scheme])
    return f"a step of {sum(parts.values()) / 1e3:.1f} ms ({_shares(parts)})"


def _verify(ours: Engine, column: dict, scheme: str) -> str:
    """Our T(n)/T(1), and the one that gives a bar's gain with our drafts and acceptance."""
    n, step_us = column["tree_size"], ours.pass_us(ours.kernels[scheme])
    parts = ours.parts(ours.kernels[scheme], n)
    cycle_us = fitting.emitted(column, ours.fitted) * step_us / column["bars"][scheme][2]
    asked = (cycle_us - ours.draft_us(column["depth"])) / step_us
    return (
        f"T({n})/T(1) of {sum(parts.values()) / step_us:.2f} ({_shares(parts)}); "
        f"the bar asks for {asked:.2f}"
    )


def _shares(parts: dict[str, float]) -> str:
    """What a pass is held up by, largest first; below 5 % is left out."""
    whole = sum(parts.values())
    ordered = sorted(parts.items(), key=lambda part: -part[1])
    return ", ".join(f"{us / whole:.0%} {name}" for name, us in ordered if us > 0.05 * whole)


def unhidden(ours: Engine, column: dict, scheme: str) -> float:
    """A bar with EAGLE-2 if converting its weights, once per row tile, hid behind nothing."""
    kernel, n = ours.kernels[scheme], column["tree_size"]
    issue_us = 1e6 * ours.layer_weights * kernel.instructions / ours.device.issued_per_s
    cycle_us = ours.draft_us(column["depth"]) + ours.pass_us(kernel, n)
    cycle_us += -(-n // kernel.row_tile) * issue_us
    tokens = fitting.emitted(column, ours.fitted)
    return tokens * ours.pass_us(ours.kernels[column["unit"]]) / cycle_us


def _unhidden(ours: Engine, column: dict, scheme: str) -> str:
    """The reason of a large error, where converting weights is one."""
    kernel = ours.kernels[scheme]
    if not kernel.instructions:
        return ""
    return (
        f"; its kernel converts a weight in about {kernel.instructions:.0f} instructions, anew for "
        f"every {kernel.row_tile} rows, which the model hides behind reading but for group_cost: "
        f"added in full to the tree's pass it makes the bar {unhidden(ours, column, scheme):.2f}"
    )


def _verification(numbers: dict, fitted: Fitted) -> list[tuple]:
    told, ours, rows = numbers["verification"], engine_of(numbers, fitting.SMALL, fitted), []
    for scheme in ("FP16", "W8A8", "W4A16-g128"):
        ratio = fitting.verify_ratio(ours, scheme, told["rows"])
        role = "fitted" if scheme in fitting.RATIOS else "predicted"
        reason = f"T({told['rows']}): {_shares(ours.parts(ours.kernels[scheme], told['rows']))}"
        what = f"T({told['rows']})/T(1) of {scheme}"
        rows.append((fitting.SMALL, what, KINDS[3], told[scheme], ratio, role, reason))
    return rows


def _hierspec(numbers: dict, fitted: Fitted) -> list[tuple]:
    """HierSpec and EAGLE-2's smaller tree on the 70B; acceptance is that of other cells."""
    told = numbers["hierspec"]
    target, small = (engine_of(numbers, name, fitted) for name in (fitting.LARGE, fitting.SMALL))
    kernel = target.kernels["W4A16-g128"]
    keys = ("tree_size", "depth", "at_least", "target_rows")
    sizes = hierarchy.Sizes(**{key: told[key] for key in keys})
    found, step_us = hierarchy.cycle(target, small, kernel, sizes), target.pass_us(kernel)
    surer = replace(target, fitted=replace(fitted, agreement=fitted.agreement + 0.01))
    more = hierarchy.cycle(surer, small, kernel, sizes)
    emits = fitting.mean_emitted(fitted.accept_70b, told["eagle2_depth"])
    eagle2 = target.gain(kernel, told["eagle2_tree_size"], told["eagle2_depth"], emits)
    hierspec = found.emitted * step_us / found.us
    cycle = (
        f"{found.emitted:.2f} tokens a round of {found.us / step_us:.2f} steps, "
        f"{found.trees:.1f} trees on the 8B, {found.whole:.0%} of drafts accepted whole; "
        f"0.01 more agreement gives {more.emitted * step_us / more.us - hierspec:+.2f}"
    )
    tree = f"{emits:.2f} tokens a round of {emits / eagle2:.2f} steps, Spec-Bench taken as MT-Bench"
    published_eagle2 = told["over_ar"] / told["over_eagle2"]
    found_cells = [
        ("HierSpec over ar", told["over_ar"], hierspec, cycle),
        ("EAGLE-2 over ar", published_eagle2, eagle2, tree),
        ("HierSpec over EAGLE-2", told["over_eagle2"], hierspec / eagle2, "quotient of the two"),
    ]
    return [
        (fitting.LARGE, f"W4A16-g128: {what}", KINDS[4], theirs, ours, "predicted", reason)
        for what, theirs, ours, reason in found_cells
    ]


def _chains(numbers: dict, fitted: Fitted) -> list[tuple]:
    """A third party's EAGLE chains in another engine; tokens a round are theirs."""
    told, rows = numbers["replications"]["chain"], []
    ours, n = engine_of(numbers, fitting.SMALL, fitted), told["draft_len"]
    whole, four = (ours.kernels[scheme] for scheme in fitting.RATIOS)
    alone = ours.pass_us(whole) / ours.pass_us(four)
    for text, entry in told["texts"].items():
        found = [("W4A16-g128 over FP16", entry["quantization"], alone)]
        for scheme in fitting.RATIOS:
            cell = entry[scheme]
            gain = ours.gain(ours.kernels[scheme], n + 1, n, cell["mean_emitted"])
            found.append((f"{scheme}, chain of {n}", cell["gain"], gain))
        why = "another engine with launches of its own; tokens a round as they measured"
        for what, theirs, our in found:
            scheme = f"vLLM, {text}: {what}"
            rows.append((fitting.SMALL, scheme, KINDS[5], theirs, our, "predicted", why))
    return rows


def _frequent(numbers: dict, fitted: Fitted) -> list[tuple]:
    """A head whose output layer is cut to frequent tokens, over one with all."""
    told, column = numbers["replications"]["frequent"], numbers["columns"][fitting.SMALL]
    ours, depth = engine_of(numbers, fitting.SMALL, fitted), column["depth"]
    verify = ours.pass_us(ours.kernels["FP16"], column["tree_size"])
    gain = (ours.draft_us(depth) + verify) / (ours.draft_us(depth, told["vocabulary"]) + verify)
    why = "tokens a round taken as equal; theirs fall a little where the head lacks rare tokens"
    what = "FR-Spec over EAGLE-2, FP16"
    return [(fitting.SMALL, what, KINDS[5], told["gain"], gain, "predicted", why)]
