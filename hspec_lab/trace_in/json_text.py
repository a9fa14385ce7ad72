"""The text of a file in pieces, inflated on the way where it is gzipped; bounded in memory.

A gzip file may have several members, be cut off or be damaged: what could be inflated comes.
"""

import codecs
import zlib
from collections.abc import Iterator
from pathlib import Path

GZIP = b"\x1f\x8b"
# bytes of a piece, inflated or not
CHUNK = 1 << 22
# gzipped bytes that are inflated at a time
_PIECE = 1 << 16


def text_pieces(path: Path, notes: list[str], chunk: int = CHUNK) -> Iterator[str]:
    """Yield a UTF-8 file's text, gzipped or not.

    Args:
        path: the file.
        notes: gets one line for each thing that was left out or replaced, while reading.
        chunk: bytes of a piece, roughly.
    """
    decode = codecs.getincrementaldecoder("utf-8-sig")("replace").decode
    with path.open("rb") as file:
        zipped = file.read(2) == GZIP
    replaced = 0
    for data in _inflated(path, notes, chunk) if zipped else _plain(path, chunk):
        text = decode(data)
        replaced += text.count("\ufffd")
        yield text
    text = decode(b"", True)
    yield text
    if replaced := replaced + text.count("\ufffd"):
        notes.append(f"{replaced} characters are no UTF-8: they read \ufffd now")


def head_of(path: Path, size: int = 4096) -> bytes:
    """The first bytes of a file, inflated if it is gzipped."""
    with path.open("rb") as file:
        if file.read(2) != GZIP:
            file.seek(0)
            return file.read(size)
    return next((data[:size] for data in _inflated(path, [], _PIECE) if data), b"")


def _plain(path: Path, chunk: int) -> Iterator[bytes]:
    with path.open("rb") as file:
        while data := file.read(chunk):
            yield data


def _inflated(path: Path, notes: list[str], chunk: int) -> Iterator[bytes]:
    with path.open("rb") as file:
        data = file.read(_PIECE)
        while len(data) > 1 or (data := data + file.read(_PIECE)):
            if data[:2] != GZIP:
                if data.strip(b"\0"):
                    notes.append("what follows the gzip data is no gzip: left out")
                return
            member = zlib.decompressobj(31)
            while not member.eof and data:
                before = member.copy()
                try:
                    yield member.decompress(data, chunk)
                except zlib.error as error:
                    yield from _until_error(before, data)
                    notes.append(f"the gzip data are damaged ({error}): the rest is left out")
                    return
                data = member.unused_data or member.unconsumed_tail or file.read(_PIECE)
            if not member.eof:
                notes.append("the gzip data are cut off: the rest is missing")


def _until_error(member, data: bytes) -> Iterator[bytes]:
    """What comes out before the byte that breaks it; zlib keeps back what it had at that point."""
    try:
        for at in range(len(data)):
            yield member.decompress(data[at : at + 1])
    except zlib.error:
        return
