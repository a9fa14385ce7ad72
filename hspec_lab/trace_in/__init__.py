"""Traces of other tools, and our own exports, as a `Timeline`; what a file is, its content says.

    SQLite      `nsys export --type sqlite`, or our export of that layout
    JSON        torch.profiler, Chrome traces, our exports for Perfetto and speedscope; gzipped too
    a folder    a recorded run, or our export as Parquet tables

Nothing in a file is executed, and nothing is written.  What is damaged is left out, with a line in
`Timeline.notes`, or refused with one.
"""

from pathlib import Path

from hspec_lab.store import read_run
from hspec_lab.timeline import Timeline, of_run
from hspec_lab.trace_in import chrome, nsys_sqlite, parquet, speedscope
from hspec_lab.trace_in.json_text import head_of

_SQLITE = b"SQLite format 3\0"
_PARQUET = b"PAR1"
_BLANK = b"\xef\xbb\xbf \t\r\n"
_REPORTS = (".nsys-rep", ".qdrep", ".qdstrm")
_READS = "read are nsys' SQLite exports, torch.profiler's and Chrome's JSON, and hspec's own"


def read_trace(path: Path | str) -> Timeline:
    """Read a trace, whichever tool wrote it.

    Raises:
        ValueError: one line that says what the file is, and what can be read.
    """
    path = Path(path)
    if path.is_dir():
        return _of_folder(path)
    try:
        head = head_of(path)
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist") from None
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror or error}") from None
    if head.startswith(_SQLITE):
        return nsys_sqlite.read(path)
    if head.lstrip(_BLANK)[:1] in (b"{", b"["):
        ours = speedscope.SCHEMA.encode() in head
        return speedscope.read(path) if ours else chrome.read(path)
    raise ValueError(f"{path}{_other(path, head)}; {_READS}")


def _of_folder(path: Path) -> Timeline:
    if (path / "run.json").is_file():
        return of_run(*read_run(path))
    if (path / parquet.HEAD).is_file():
        return parquet.read(path)
    raise ValueError(f"{path} holds neither a run (run.json) nor an export ({parquet.HEAD})")


def _other(path: Path, head: bytes) -> str:
    """What a file is that cannot be read."""
    if path.name.endswith(_REPORTS):
        return f" is a report of Nsight Systems: first nsys export --type sqlite {path.name}"
    if head.startswith(_PARQUET):
        return " is a single Parquet table: name its folder"
    if head:
        return f" begins with {head[:8]!r}"
    return " is damaged gzip: nothing comes out of it" if path.stat().st_size else " is empty"
