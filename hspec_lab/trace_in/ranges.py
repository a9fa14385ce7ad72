"""Which ranges of a trace are ours, and tables of ours that come back from a file."""

import numpy as np
import pandas as pd

from hspec_lab.terms import phase_of
from hspec_lab.timeline import (
    DOMAIN,
    KERNELS,
    LAUNCHES,
    RANGES,
    UNKNOWN,
    Timeline,
    nested,
    table,
)
from hspec_lab.trace_in.json_events import MOST_NS

# torch.profiler's annotations have one name and nothing else: this, and a category
PREFIX = f"{DOMAIN}:"
MODULES = ("attention", "mlp", "lm_head")
# of our exports
VERSION = 1
COLUMNS = {"ranges": RANGES, "launches": LAUNCHES, "kernels": KERNELS}
# of tokens, rounds, layers: beyond, a number is none, and sums of millions fit 64 bits
MOST = 1 << 40
_NUMBERS = ("prompt", "round", "layer", "n_tokens", "n_nodes", "kv_len")
_NUMBERS += ("n_proposed", "n_accepted", "n_emitted")
# what writers of JSON and readers of it can follow
_DEEPEST = 32
_PLAIN = (str, int, float, type(None))


def named(rows: pd.DataFrame, notes: list[str]) -> pd.DataFrame:
    """The table of ranges, ours recognised by their names.

    Our names carry no numbers, so rounds are numbered in the order of time; phases and modules
    get the number of the round around them, modules also the phase.

    Args:
        rows: name, category, thread, start_ns, end_ns.
        notes: where notes go.

    Returns:
        columns `timeline.RANGES`.
    """
    means = {name: _meaning(name) for name in rows["name"].unique()}
    known = rows["name"].map(means.get)
    for at, column in enumerate(("kind", "called", "level", "phase", "filed")):
        rows = rows.assign(**{column: [meaning and meaning[at] for meaning in known]})
    ours = rows["kind"].notna() & rows["kind"].astype(bool)
    rows = rows.assign(
        kind=rows["kind"].where(ours, "range"),
        name=rows["called"].where(ours, rows["name"]),
        category=rows["filed"].where(ours, rows["category"]),
        domain=pd.Series(DOMAIN, index=rows.index).where(ours, ""),
    )
    ranges = nested(table(RANGES, rows))
    return _inherited(ranges, notes) if ours.any() else ranges


def restored(head: dict, tables: dict[str, pd.DataFrame], notes: list[str], path) -> Timeline:
    """The timeline that one of our exports was written from.

    Args:
        head: what the export says about itself: hspec_lab (its version), notes, about.
        tables: ranges, launches, kernels; tables and columns without content may be missing.
        notes: of reading the file.
        path: the file, for errors.

    Raises:
        ValueError: of another version, or a column holds what does not belong there.
    """
    check_version(head, path)
    found = {}
    for name, columns in COLUMNS.items():
        try:
            whole = table(columns, tables.get(name))
        except (TypeError, ValueError, OverflowError) as error:
            reason = str(error).splitlines()[0]
            raise ValueError(f"{path}: its {name} are damaged: {reason}") from None
        found[name] = _sound(name, whole, notes)
    said = head.get("notes")
    said = [note for note in said if isinstance(note, str)] if isinstance(said, list) else []
    return Timeline(
        nested(found["ranges"]),
        found["launches"],
        found["kernels"],
        (*said, *notes),
        about_of(head.get("about")),
    )


def about_of(said) -> dict:
    """What an export of ours says of its origin; {} if that is nothing we would have written."""
    level, depth = [said], 0
    while level and depth <= _DEEPEST:
        inner = (v.values() if isinstance(v, dict) else v for v in level)
        level = [value for values in inner if not isinstance(values, _PLAIN) for value in values]
        depth += 1
    return said if isinstance(said, dict) and not level else {}


def check_version(head: dict, path) -> None:
    """Refuse an export of ours that this code does not know."""
    if head.get("hspec_lab") != VERSION or isinstance(head.get("hspec_lab"), bool):
        found = repr(head.get("hspec_lab"))[:40]
        raise ValueError(f"{path}: an export of version {found}, this code reads {VERSION}")


def from_zero(*tables: pd.DataFrame) -> list[pd.DataFrame]:
    """The same tables, times counted from the earliest of all."""
    zero = min((int(rows["start_ns"].min()) for rows in tables if len(rows)), default=0)
    times = ("start_ns", "end_ns")
    return [rows.assign(**{name: rows[name] - zero for name in times}) for rows in tables]


def _meaning(name: str) -> tuple[str, str, str, str, str] | None:
    """Kind, name, level, phase and category of a range of ours; None: somebody else's."""
    if not name.startswith(PREFIX):
        return None
    category = name[len(PREFIX) :]
    if category == "round":
        return "round", "round", "", "", "round"
    if category in MODULES:
        return "module", category, "", "", ""
    around, _, module = category.rpartition("/")
    if module in MODULES and phase_of(around):
        return "module", module, *phase_of(around), around
    found = phase_of(category)
    return ("phase", found[1], *found, category) if found else None


def _inherited(ranges: pd.DataFrame, notes: list[str]) -> pd.DataFrame:
    """Number rounds, and give phases and modules what is around them."""
    kinds, parents = ranges["kind"].tolist(), ranges["parent"].tolist()
    # by row: the round and the phase that it is or lies in; behind the last row stands "none"
    rounds, phases = [UNKNOWN] * (len(kinds) + 1), [UNKNOWN] * (len(kinds) + 1)
    n_rounds = 0
    for row, (kind, parent) in enumerate(zip(kinds, parents, strict=True)):
        rounds[row], phases[row] = rounds[parent], phases[parent]
        if kind == "round":
            rounds[row], n_rounds = n_rounds, n_rounds + 1
        elif kind == "phase":
            phases[row] = row
    ours = ranges["kind"] != "range"
    ranges = ranges.assign(round=pd.Series(rounds[:-1]).where(ours, UNKNOWN).astype("int64"))
    bare = (ranges["kind"] == "module") & (ranges["phase"] == "")
    around = [(row, phases[row]) for row in ranges.index[bare] if phases[row] != UNKNOWN]
    if around:
        rows, sources = map(list, zip(*around, strict=True))
        copied = ["level", "phase", "category"]
        ranges.loc[rows, copied] = ranges.loc[sources, copied].to_numpy()
    if n_rounds:
        notes.append(f"{n_rounds} rounds are numbered by time: the trace says no more of them")
    return ranges


def _sound(name: str, rows: pd.DataFrame, notes: list[str]) -> pd.DataFrame:
    """Without rows whose times cannot be, and without numbers of tokens that cannot."""
    start, end = rows["start_ns"], rows["end_ns"]
    sound = (-MOST_NS < start) & (start <= end) & (end < MOST_NS)
    if not sound.all():
        notes.append(f"{(~sound).sum()} of the {name} have times that cannot be: left out")
    rows = rows[sound].reset_index(drop=True)
    if name == "ranges":
        odd = ~rows[list(_NUMBERS)].isin([UNKNOWN]) & ~rows[list(_NUMBERS)].ge(0)
        odd |= rows[list(_NUMBERS)] > MOST
        if odd.any(axis=None):
            notes.append(f"{odd.sum().sum()} numbers of the ranges cannot be: unknown now")
            rows = rows.assign(**rows[list(_NUMBERS)].mask(odd, UNKNOWN))
        rows["device_us"] = rows["device_us"].where(np.isfinite(rows["device_us"]))
    return rows
