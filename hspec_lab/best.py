"""The best configuration: every drafter priced on recorded texts, one table, one advice; no torch.

A candidate is a pair of an acceptance trace and the stages of a device.  `search` prices every
setting that the trace answers for: plain decoding (ar), chains, EAGLE-2 trees, static trees,
hierarchies with and without narrow trees.  Candidates of other formats, models or devices stand in
the same table, so the best scheme of each level is found with the sizes; times compare within a
device.  `best` says what to run, which may be "do not speculate".  `shortlist` picks the few that
are worth a real run (see `confirm`): predicted times next to each other do not differ by much, so
it prefers what is unlike what it has.

Static trees are priced as EAGLE-2 trees of their size and depth, although their passes have fewer
rows and nothing is re-ranked; their rows' warnings say so.
"""

from collections.abc import Callable, Iterable

import numpy as np
import pandas as pd

from hspec_lab.acceptance_folder import Trace
from hspec_lab.config import Config, Drafting, head_draft
from hspec_lab.matching import check_fits
from hspec_lab.pricing import plain_row, rows_of
from hspec_lab.space import Space, kinds, of_prompts
from hspec_lab.stages import StageCosts

# settings that agree in these are of one kind
_KIND = ("device", "method", "target", "intermediate", "head")

_TITLES = (
    "method    us/token  speed-up (95 %)        tree depth top-k  length narrow  emitted  formats"
)
_LINE = (
    "{method:9} {us_per_token:8.0f}  {speedup:.2f}x ({speedup_low:.2f} to {speedup_high:.2f})"
    "  {tree_size:>4} {depth:>5} {top_k:>5}  {at_least:>6} {narrow:>6}  {mean_emitted:7.2f}"
    "  {formats}"
)

Fits = Callable[[StageCosts, Drafting | None], bool]


def search(
    candidates: Iterable[tuple[Trace, StageCosts]],
    space: Space | None = None,
    *,
    allow: Iterable[str] = (),
    fits: Fits | None = None,
    n_prompts: int | None = None,
    max_new_tokens: int | None = None,
) -> pd.DataFrame:
    """Price every setting of every candidate.

    Args:
        candidates: stages with an intermediate model go with traces of one.
        allow: in what a trace and its stages may differ, see `predict.predict`.
        fits: says whether a configuration fits its device's memory; None: not known.
        n_prompts: the first so many of each trace count; None: all.  To be compared with real runs,
            take as many as they do, and outputs as long.
        max_new_tokens: cuts each output; None: as recorded.

    Returns:
        one row a setting, fastest first within a device: device, method; target, intermediate,
        head and the schemes of each; the sizes; us_per_token with the ends `low`, `high` of its
        95 % interval (prompts drawn anew, and the stages' standard errors); speedup over ar of the
        same target with its interval, ar_steps, mean_emitted, fits (None: not known), origin,
        trace, warnings, draft (the value).  A setting that several candidates price stands as the
        first one says, a chain as a chain's own stages say.  Settings with a pass beyond a
        measured curve are left out; `attrs["beyond"]` says how many.

    Raises:
        ValueError: there is no candidate, or a trace and its stages do not go together.
    """
    found, beyond, counted = [], 0, {}
    candidates = list(candidates)
    if len(heats := {trace.config.temperature for trace, _ in candidates}) > 1:
        raise ValueError(
            f"traces of temperatures {', '.join(f'{heat:g}' for heat in sorted(heats))} do not "
            "compare: search those of one"
        )
    for trace, costs in candidates:
        # a trace is walked once, however many devices it is priced on
        if id(trace) not in counted:
            short = trace if n_prompts is None else _shortened(trace, n_prompts)
            walked = list(kinds(short, space or Space(), max_new_tokens)) if short.n_counted else []
            counted[id(trace)] = trace, short, walked
        _, trace, walked = counted[id(trace)]
        if trace.n_counted == 0:
            raise ValueError(f"{trace.name} holds no positions: record it first")
        # the stages of a chain say nothing of a head
        parts, of_chain = [plain_row(costs)], not np.isfinite(costs.draft_us).any()
        for kind in walked:
            if of_chain and head_draft(kind.largest) is not None:
                continue
            warnings = [*check_fits(trace, costs, kind.largest, allow), kind.warning]
            rows, n_beyond = rows_of(trace, costs, kind)
            beyond += n_beyond
            if len(rows):
                parts.append(rows.assign(warnings="; ".join(filter(None, warnings))))
        for rows in parts:
            fit = None if fits is None else [bool(fits(costs, draft)) for draft in rows["draft"]]
            found.append(rows.assign(fits=fit, plain_us=costs.plain_us, of_chain=of_chain))
    if not found:
        raise ValueError("no candidates: give pairs of an acceptance trace and a device's stages")
    table = _in_one_unit(pd.concat(found, ignore_index=True))
    table = table.sort_values(["device", "us_per_token"], kind="stable", ignore_index=True)
    table.attrs["beyond"] = beyond
    return table


def best(table: pd.DataFrame) -> pd.DataFrame:
    """The fastest configuration of each device that is not known not to fit, and what it means.

    Args:
        table: from `search`.

    Returns:
        one row a device: the columns of `search`; gain with `gain_low` and `gain_high`, the best
        speculative speed over the best plain one, whatever their targets; and advice, in words.
    """
    rows = []
    for device, here in table.groupby("device", sort=False):
        here = here[here["fits"].ne(False)]
        plain, drafted = here[here["method"] == "ar"], here[here["method"] != "ar"]
        if plain.empty:
            raise ValueError(f"no model fits {device}, not even decoding plainly")
        rows.append(_advised(plain.iloc[0], None if drafted.empty else drafted.iloc[0]))
    return pd.DataFrame(rows).reset_index(drop=True)


def shortlist(table: pd.DataFrame, n: int = 8) -> pd.DataFrame:
    """The configurations of one device to confirm by real runs: ar, each method's best, others.

    Args:
        table: from `search`; its fastest device counts when it holds several.
        n: how many, ar among them.

    Returns:
        rows of `table`, ar first, then by predicted time; of a kind none close to another while
        there are others.
    """
    if n < 1:
        raise ValueError(f"n must be >= 1, got {n!r}")
    table = table[table["fits"].ne(False)]
    table = table[table["device"] == table.loc[table["us_per_token"].idxmin(), "device"]]
    drafted = table[table["method"] != "ar"].sort_values("us_per_token", kind="stable")
    # plain decoding of the target that is fastest with a drafter: what that is compared with
    plain = table[table["method"] == "ar"]
    if len(drafted):
        plain = plain.sort_values("target", key=lambda t: t != drafted["target"].iloc[0])
    first = list(drafted.drop_duplicates("method").index)[: n - 1]
    for label in drafted.index:
        if len(first) >= n - 1:
            break
        if not any(_close(drafted.loc[label], drafted.loc[other]) for other in first):
            first.append(label)
    first += [label for label in drafted.index if label not in first][: n - 1 - len(first)]
    return pd.concat([plain.iloc[:1], drafted.loc[sorted(first, key=drafted.index.get_loc)]])


def as_text(table: pd.DataFrame, n: int = 8) -> str:
    """The advice for each device and, of each, the `n` configurations worth a real run."""
    lines = [f"{row.device}: {row.advice}" for row in best(table).itertuples()]
    for device in table["device"].unique():
        here = shortlist(table[table["device"] == device], n)
        lines += ["", f"{device} ({'; '.join(here['origin'].unique())})", _TITLES]
        lines += [_LINE.format(**_shown(row)) for row in here.to_dict("records")]
        told = dict.fromkeys(told for told in here["warnings"] if told)
        lines += [f"but: {warning}" for warning in told]
    if beyond := table.attrs.get("beyond"):
        lines.append(f"{beyond} settings lie beyond the measured curves and were left out")
    return "\n".join(lines)


def _shown(row: dict) -> dict:
    formats = [row[f"{level}_format"] for level in ("target", "intermediate", "head")]
    sizes = {name: row[name] or "-" for name in ("top_k", "tree_size", "depth", "at_least")}
    return (
        row | sizes | {"narrow": row["narrow"] or "-", "formats": ", ".join(filter(None, formats))}
    )


def configs_of(table: pd.DataFrame, **settings) -> list[Config]:
    """The configs of a table's rows; `settings` are fields of `Config` (threads, device, ...)."""
    pairs = zip(table["target"], table["draft"], strict=True)
    return [Config(target=target, draft=draft, **settings) for target, draft in pairs]


def _shortened(trace: Trace, n_prompts: int) -> Trace:
    n_recorded = len(trace.head["n_positions"])
    if not 1 <= n_prompts <= n_recorded:
        raise ValueError(f"{trace.name} holds {n_recorded} prompts, asked for {n_prompts!r}")
    return of_prompts(trace, 0, n_prompts)


def _in_one_unit(table: pd.DataFrame) -> pd.DataFrame:
    """Times in the first candidate's plain steps of each target; every setting once."""
    keys = ["device", "target"]
    unit = table.groupby(keys, sort=False)["plain_us"].transform("first")
    for name in ("us_per_token", "low", "high"):
        table[name] = table[name] * unit / table["plain_us"]
    # a chain's own stages come before those of a hierarchy with the same model
    own = (table["method"] == "chain") & table.pop("of_chain")
    first = own.sort_values(ascending=False, kind="stable").index
    return table.assign(plain_us=unit).loc[first].drop_duplicates([*keys, "draft"])


def _advised(plain: pd.Series, drafted: pd.Series | None) -> dict:
    """The faster row, and what to make of it."""
    if drafted is None:
        nan = dict.fromkeys(("gain", "gain_low", "gain_high"), np.nan)
        return dict(plain) | nan | {"advice": "do not speculate: no drafter was searched or fits"}
    gain = plain["us_per_token"] / drafted["us_per_token"]
    low, high = (gain * drafted[f"speedup_{end}"] / drafted["speedup"] for end in ("low", "high"))
    between = f"{low:.2f} to {high:.2f}" if np.isfinite(low) else "of one prompt, so no interval"
    told = f"{drafted['draft']!r} on {drafted['target']} at {gain:.2f}x ({between})"
    if plain["target"] != drafted["target"]:
        told += f" over {plain['target']}, which was measured at another time"
    if gain <= 1:
        row, advice = plain, f"do not speculate: the best drafter is {told} of plain decoding"
    elif not low > 1:
        row, advice = drafted, f"speculate, but plain decoding may be as fast: {told}"
    else:
        row, advice = drafted, f"speculate: {told}"
    return dict(row) | {"gain": gain, "gain_low": low, "gain_high": high, "advice": advice}


def _close(one: pd.Series, other: pd.Series) -> bool:
    """Whether two settings are of one kind and no size differs by more than a step."""
    if any(one[name] != other[name] for name in _KIND):
        return False
    for name in ("top_k", "tree_size", "narrow"):
        small, large = sorted([one[name], other[name]])
        if large > 1.5 * small:
            return False
    return all(abs(one[name] - other[name]) <= 1 for name in ("depth", "at_least"))
