"""The training text: the standard library's own `.py` sources, split into training and held-out.

Every machine with Python has this text, so anybody can train the zoo again.  A file is *library*
(shown `LIBRARY_EPOCHS` times per pass), *test* (shown once) or left out: generated tables and
codec maps teach a model nothing about code.  Held-out modules are chosen by a hash of their path
among ordinary library modules, never by how well they compress.  A test file that carries the name
of a held-out module (`test_<stem>.py`) is left out too; other tests that use it are not.
"""

import hashlib
import random
import sysconfig
from dataclasses import dataclass
from pathlib import Path

LIBRARY_EPOCHS = 2
N_HELD_OUT = 16
LEFT_OUT = (
    "site-packages/",
    "encodings/",
    "pydoc_data/",
    "lib2to3/tests/data/",
    "test/encoded_modules/",
    "test/test_import/data/",
    "test/support/_hypothesis",
    "idlelib/help",
    "_sysconfigdata",
)
MAX_FILE_BYTES = 400_000
HELD_OUT_BYTES = (8_000, 40_000)


@dataclass(frozen=True, slots=True)
class SourceFile:
    """One file of the corpus; `part` is library, test or held_out."""

    name: str  # path below the standard library's folder, with forward slashes
    part: str
    text: str


def _digest(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()


def _is_test(name: str) -> bool:
    return any(part in ("test", "tests", "idle_test") for part in name.split("/")[:-1])


def _can_be_held_out(name: str, n_bytes: int) -> bool:
    low, high = HELD_OUT_BYTES
    ordinary = not _is_test(name) and not name.startswith(("idlelib/", "lib2to3/", "turtledemo/"))
    return ordinary and low <= n_bytes <= high


def read_corpus(root: Path | None = None) -> list[SourceFile]:
    """Read the standard library's sources, sorted by name.

    Args:
        root: the library's folder; this interpreter's own when None.

    Raises:
        ValueError: fewer than 500 files were found (a stripped installation).
    """
    root = root or Path(sysconfig.get_paths()["stdlib"])
    texts = {}
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root).as_posix()
        if any(part in name for part in LEFT_OUT) or path.stat().st_size > MAX_FILE_BYTES:
            continue
        try:
            text = path.read_text(encoding="utf-8").replace("\r\n", "\n")
        except UnicodeDecodeError:
            continue
        if text.strip():
            texts[name] = text
    if len(texts) < 500:
        raise ValueError(f"{root}: found {len(texts)} source files, a standard library has > 500")
    able = [name for name, text in texts.items() if _can_be_held_out(name, len(text.encode()))]
    held_out = set(sorted(able, key=_digest)[:N_HELD_OUT])
    own_tests = {"test_" + Path(name).stem.lstrip("_") for name in held_out}
    files = []
    for name, text in texts.items():
        if name in held_out:
            files.append(SourceFile(name, "held_out", text))
        elif not (_is_test(name) and (own_tests & {Path(name).stem, *name.split("/")})):
            files.append(SourceFile(name, "test" if _is_test(name) else "library", text))
    return files


def training_order(files: list[SourceFile], seed: int) -> list[SourceFile]:
    """One pass over the training files: library files `LIBRARY_EPOCHS` times, shuffled."""
    files = [file for file in files if file.part != "held_out"]
    files = files + (LIBRARY_EPOCHS - 1) * [file for file in files if file.part == "library"]
    random.Random(seed).shuffle(files)
    return files
