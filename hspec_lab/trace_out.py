"""Our traces for others' viewers: Chrome Trace Event JSON, which Perfetto opens.

One process per run, one track for the rounds and one per level.  Arrows lead each proposal to the
pass that verifies it; counters show tokens emitted and tokens stored.  Times are microseconds of
the host clock; the device's own time of a span, where there is one, stands among its arguments
and never on the axis.

source: Trace Event Format (phases M, X, C, s, f), read by ui.perfetto.dev and chrome://tracing.
"""

import json
import math
import os
from pathlib import Path
from uuid import uuid4

import pandas as pd

from hspec_lab.store import read_run
from hspec_lab.terms import LEVELS

_PID = 1
_ROUNDS_TID = 1
# a round's proposals flow through these, in the order of time
_HANDS_ON = ("draft", "verify_intermediate")
_VERIFIES = ("verify_intermediate", "verify_target")


def to_chrome(rounds: pd.DataFrame, spans: pd.DataFrame, head: dict) -> dict:
    """Return a run as a Chrome trace, ready for `json.dump`.

    Args:
        rounds, spans: recorded tables.
        head: what `run.json` holds; its config and environment go along as `otherData`.
    """
    tracks = _tracks(spans)
    events = [
        *_names(head, tracks),
        *(_round_event(row) for row in rounds.itertuples()),
        *(_span_event(row, tracks) for row in spans.itertuples()),
        *_flows(spans, tracks),
        *_counters(rounds),
    ]
    known = ("kind", "config_id", "method", "format", "config", "environment")
    return {
        "traceEvents": events,
        "displayTimeUnit": "ms",
        "otherData": {name: head[name] for name in known if name in head},
    }


def write_perfetto(
    run: Path | str | tuple[dict, dict[str, pd.DataFrame]], path: Path | str
) -> Path:
    """Write a run as a file for ui.perfetto.dev; an interrupted write leaves no file.

    Args:
        run: a run folder, or what `read_run` returns.
        path: the file to write.
    """
    head, tables = run if isinstance(run, tuple) else read_run(run)
    trace = to_chrome(tables["rounds"], tables["spans"], head)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}-{uuid4().hex[:8]}")
    try:
        unfinished.write_text(json.dumps(trace, allow_nan=False), encoding="utf-8")
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
    return path


def _tracks(spans: pd.DataFrame) -> dict[str, int]:
    """Number the levels' tracks: ours in their order, then others as they come."""
    found = list(dict.fromkeys(spans["level"]))
    ordered = [level for level in LEVELS if level in found]
    ordered += [level for level in found if level not in LEVELS]
    return {level: _ROUNDS_TID + 1 + position for position, level in enumerate(ordered)}


def _names(head: dict, tracks: dict[str, int]) -> list[dict]:
    title = " ".join(str(head[name]) for name in ("method", "format", "config_id") if name in head)
    events = [_meta("process_name", 0, name=f"hspec_lab {title}".strip())]
    for name, tid in {"rounds": _ROUNDS_TID, **tracks}.items():
        events += [
            _meta("thread_name", tid, name=name),
            _meta("thread_sort_index", tid, sort_index=tid),
        ]
    return events


def _meta(kind: str, tid: int, **args) -> dict:
    return {"ph": "M", "name": kind, "pid": _PID, "tid": tid, "ts": 0, "args": args}


def _us(time: float) -> float:
    # whole nanoseconds, so that the end of one slice is not a rounding error after the next's start
    return round(float(time), 3)


def _slice(row, name: str, category: str, tid: int, args: dict) -> dict:
    shared = {"prompt": int(row.prompt), "round": int(row.round), "kv_len": int(row.kv_len)}
    if row.warmup:
        shared["warmup"] = True
    return {
        "ph": "X",
        "name": name,
        "cat": category,
        "pid": _PID,
        "tid": tid,
        "ts": _us(row.start_us),
        "dur": _us(row.duration_us),
        "args": shared | args,
    }


def _round_event(row) -> dict:
    counts = ("n_proposed", "n_accepted", "n_emitted")
    args = {name: int(getattr(row, name)) for name in counts}
    return _slice(row, f"round {row.round}", "round", _ROUNDS_TID, args)


def _span_event(row, tracks: dict[str, int]) -> dict:
    args = {"phase": row.phase, "n_tokens": int(row.n_tokens)}
    if math.isfinite(row.device_us):
        args["device_us"] = float(row.device_us)
    return _slice(row, row.phase, f"{row.level}/{row.phase}", tracks[row.level], args)


def _flows(spans: pd.DataFrame, tracks: dict[str, int]) -> list[dict]:
    """Link each verifying pass with the proposal just before it in its round."""
    events, giver = [], None
    for row in spans.sort_values("start_us", kind="stable").itertuples():
        at = (row.prompt, row.round, row.warmup)
        takes = row.phase in _VERIFIES and giver is not None
        # a second pass of the same level is its catch-up, not a hand-over
        takes = takes and (giver.phase, giver.level) != (row.phase, row.level)
        if takes and at == (giver.prompt, giver.round, giver.warmup):
            flow = len(events) // 2 + 1
            events += [_flow("s", flow, giver, tracks), _flow("f", flow, row, tracks)]
            giver = None
        if row.phase in _HANDS_ON:
            giver = row
    return events


def _flow(end: str, flow: int, row, tracks: dict[str, int]) -> dict:
    # an arrow belongs to the slice that its time lies in; the middle is surely inside
    event = {
        "ph": end,
        "id": flow,
        "name": "proposal",
        "cat": "proposal",
        "pid": _PID,
        "tid": tracks[row.level],
        "ts": _us(row.start_us + row.duration_us / 2),
    }
    return event | {"bp": "e"} if end == "f" else event


def _counters(rounds: pd.DataFrame) -> list[dict]:
    return [
        {
            "ph": "C",
            "name": name,
            "pid": _PID,
            "tid": 0,
            "ts": _us(row.start_us),
            "args": {name: int(getattr(row, name))},
        }
        for row in rounds.sort_values("start_us", kind="stable").itertuples()
        for name in ("n_emitted", "kv_len")
    ]
