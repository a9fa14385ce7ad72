"""Chrome Trace Event JSON: torch.profiler's, our own export for Perfetto, anybody's.

Of torch.profiler's events annotations, calls of the driver that start work, kernels, copies and
fills are kept; the rest, operators above all, is counted in `about["left_out"]`.  An annotation
"hspec_lab:<category>" is ours.  A call and what it started share `args.correlation`; the kernels of
a CUDA graph carry that of cudaGraphLaunch, and "graph node id".  Of other tools' traces, whatever
has a beginning and an end is a range.  Our own export comes back as it was.

cost: one pass; some 70 bytes per kept event until the tables are made.
"""

from pathlib import Path

from hspec_lab.timeline import Timeline
from hspec_lab.trace_in.collected import Collected
from hspec_lab.trace_in.json_events import Events
from hspec_lab.trace_in.json_text import text_pieces
from hspec_lab.trace_in.ranges import VERSION, restored

# kept events; what follows them is left out
MOST_EVENTS = 5_000_000
# what only torch.profiler's top level says
_TORCH = ("schemaVersion", "deviceProperties", "baseTimeNanoseconds")


def read(path: Path, most_events: int = MOST_EVENTS) -> Timeline:
    """Read a trace, gzipped or not.

    Args:
        path: the file.
        most_events: so many are kept at most.

    Raises:
        ValueError: it holds no events, or is an export of ours of another version.
    """
    notes: list[str] = []
    events, found = Events(text_pieces(path, notes), notes), Collected()
    for event in events:
        found.add(event)
        if found.n_kept >= most_events:
            notes.append(f"{most_events} events are kept: what follows them is left out")
            break
    if not events.found:
        names = f"with {', '.join(map(_shown, events.keys))}" if events.keys else "of another kind"
        raise ValueError(f"{path}: JSON {names}; a trace has a list traceEvents, or is a list")
    if events.n_broken and not found.n_events:
        raise ValueError(f"{path}: a JSON list without one readable event of a trace")
    about, tables = _about_itself(events.head), found.ours()
    if about is None and tables is None:
        return found.timeline(_origin(events.head), notes)
    if about is None:
        notes.append("the export says nothing about itself: its origin and notes are missing")
    return restored(about or {"hspec_lab": VERSION}, tables or {}, notes, path)


def _about_itself(head: dict) -> dict | None:
    """What our own export says of itself, None if this is not one."""
    other = head.get("otherData")
    return other if isinstance(other, dict) and "hspec_lab" in other else None


def _origin(head: dict) -> dict:
    """Where somebody else's trace comes from, as far as its top level says."""
    about = {"source": "torch.profiler" if any(n in head for n in _TORCH) else "Chrome trace"}
    names = {"schemaVersion": "schema", "baseTimeNanoseconds": "base_ns"}
    about |= {name: head[key] for key, name in names.items() if type(head.get(key)) is int}
    devices = head.get("deviceProperties")
    devices = devices if isinstance(devices, list) else []
    known = [device.get("name") for device in devices if isinstance(device, dict)]
    if known := [name for name in known if isinstance(name, str)]:
        about["devices"] = known
    return about


def _shown(key: str) -> str:
    return key if key.isprintable() else repr(key)
