"""Traces in a few words: ranges, launches and kernels at times that a reader can follow.

    trace(
        [a_round(0, 100), phase("draft", "head", 0, 40)],
        [launch(1, at=10)],
        [kernel(1, 50, 60)],
    )

Times are ns.  The host's thread is 1 and the device's stream 7 unless told.
"""

import pandas as pd

from hspec_lab import timeline
from hspec_lab.terms import category_of

THREAD, STREAM = 1, 7


def trace(ranges=(), launches=(), kernels=(), **kept) -> timeline.Timeline:
    """A timeline of such rows; `kept` are `notes` and `about`."""
    named = (
        (timeline.RANGES, ranges),
        (timeline.LAUNCHES, launches),
        (timeline.KERNELS, kernels),
    )
    made = [timeline.table(columns, pd.DataFrame(list(rows))) for columns, rows in named]
    return timeline.Timeline(timeline.nested(made[0]), *made[1:], **kept)


def a_round(start, end, number=0, prompt=0, warmup=False, emitted=1, thread=THREAD):
    """A round of ours."""
    return _ours("round", "round", "round", start, end, thread) | {
        "round": number,
        "prompt": prompt,
        "warmup": warmup,
        "n_emitted": emitted,
    }


def phase(name, level, start, end, number=0, prompt=0, warmup=False, thread=THREAD):
    """A phase of ours."""
    return _ours("phase", name, category_of(level, name), start, end, thread) | {
        "phase": name,
        "level": level,
        "round": number,
        "prompt": prompt,
        "warmup": warmup,
    }


def module(name, phase, level, start, end, layer=0, thread=THREAD):
    """A module of ours inside a phase."""
    row = _ours("module", name, category_of(level, phase), start, end, thread)
    return row | {"phase": phase, "level": level, "warmup": False, "layer": layer}


def named(name, start, end, thread=THREAD):
    """A range that somebody else named."""
    about = {"kind": "range", "name": name, "warmup": False}
    return about | {"start_ns": start, "end_ns": end, "thread": thread}


def launch(correlation, at, end=None, thread=THREAD, name="cudaLaunchKernel"):
    """A call that starts work on a device; it takes 2 ns unless told."""
    times = {"start_ns": at, "end_ns": at + 2 if end is None else end}
    return times | {"name": name, "thread": thread, "correlation": correlation}


def kernel(correlation, start, end, name="gemm", stream=STREAM, device=0, node=0, kind="kernel"):
    """A kernel, or with `kind` a copy or a fill."""
    about = {"name": name, "kind": kind, "stream": stream, "device": device, "graph_node": node}
    return about | {"correlation": correlation, "start_ns": start, "end_ns": end}


def _ours(kind, name, category, start, end, thread):
    about = {"kind": kind, "name": name, "domain": timeline.DOMAIN, "category": category}
    return about | {"start_ns": start, "end_ns": end, "thread": thread}
