"""Events of Chrome traces, as torch.profiler names them; invented content."""

import json

ROUND = "hspec_lab:round"
VERIFY = "hspec_lab:target/verify"


def slice_of(name, ts, dur, cat="user_annotation", tid=7, **args):
    event = {"ph": "X", "cat": cat, "name": name, "pid": 1, "tid": tid, "ts": ts, "dur": dur}
    return event | {"args": args}


def kernel(name, ts, dur, correlation, **args):
    args = {"device": 0, "stream": 13, "correlation": correlation} | args
    return slice_of(name, ts, dur, args.pop("cat", "kernel"), 13, **args)


def call(name, ts, dur, correlation, cat="cuda_runtime"):
    return slice_of(name, ts, dur, cat, cbid=211, correlation=correlation)


def saved(path, text):
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def trace(path, events, **head):
    return saved(path, json.dumps(head | {"traceEvents": events}, indent=1))
