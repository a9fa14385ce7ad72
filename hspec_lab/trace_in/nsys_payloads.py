"""What NVTX ranges of ours say besides their names: payloads in an export of `nsys`.

A payload is a struct of whole numbers.  Exports hold one as a JSON object in `jsonText`, or as
bytes in `binaryData`, whose layout the tables NVTX_PAYLOAD_SCHEMAS and ..._ENTRIES describe:
32 bytes of header (domain, schema, size of the payload, size of all; 8 each, little endian),
then the struct.

source: nvToolsExtPayload.h of NVTX for the types; NVIDIA's guide for the tables. The header is
    described nowhere: it is as nsys-ai 0.3.0 found it in profiles of Nsight Systems 2026.2, and
    every size is checked against the schema's before anything is read.
"""

import json
import struct
from collections.abc import Callable

from hspec_lab.trace_in.sqlite_file import MISSING, Tables

SCHEMAS, ENTRIES = "NVTX_PAYLOAD_SCHEMAS", "NVTX_PAYLOAD_SCHEMA_ENTRIES"
_HEADER = struct.Struct("<QQQQ")
_MOST_ENTRIES = 10_000
# by NVTX_PAYLOAD_ENTRY_TYPE: char to unsigned long long, int8 to uint64, float, double, size
_TYPES = dict(zip(range(1, 11), "bBhHiIqQqQ", strict=True))
_TYPES |= dict(zip(range(11, 21), "bBhHiIqQfd", strict=True)) | {22: "Q"}


def reader(tables: Tables) -> Callable[[str | bytes | None, str | bytes | None, int], dict | None]:
    """Return a function of (jsonText, binaryData, domainId) that gives a payload, or None."""
    layouts = _layouts(tables)

    def read(text: str | bytes | None, data: str | bytes | None, domain: int) -> dict | None:
        found = _from_json(text) if isinstance(text, str) else None
        return _from_bytes(data, domain, layouts) if found is None and data else found

    return read


def _from_json(text: str) -> dict | None:
    """A JSON object; one inside another under a schema's name counts as well."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if isinstance(found, list) and len(found) == 1:
        found = found[0]
    if not isinstance(found, dict):
        return None
    inner = [value for value in found.values() if isinstance(value, dict)]
    if len(found) == len(inner) == 1 and len(inner[0]) > 1:
        found = inner[0]
    return {name: _unwrapped(value) for name, value in found.items()}


def _unwrapped(value):
    """NVTX for Python describes a number as a struct of one number: {"int64": 3}."""
    if isinstance(value, dict) and len(value) == 1:
        return next(iter(value.values()))
    return value


def _from_bytes(data: str | bytes, domain: int, layouts: dict) -> dict | None:
    if isinstance(data, str):
        try:
            data = bytes.fromhex(data)
        except ValueError:
            return None
    if len(data) < _HEADER.size:
        return None
    _, schema, size, _ = _HEADER.unpack_from(data)
    # the upper half may hold something else
    known = (key for key in ((domain, schema), (domain, schema & 0xFFFFFFFF)) if key in layouts)
    names, layout = layouts.get(next(known, None), ((), None))
    if layout is None or not layout.size <= size <= len(data) - _HEADER.size:
        return None
    return dict(zip(names, layout.unpack_from(data, _HEADER.size), strict=True))


def _layouts(tables: Tables) -> dict[tuple[int, int], tuple[tuple[str, ...], struct.Struct]]:
    """How to unpack each (domain, schema) that consists of plain numbers only."""
    if ENTRIES not in tables:
        return {}
    entries: dict[tuple[int, int], dict[int, tuple]] = {}
    n_entries = 0
    for part in tables.rows(ENTRIES, ["domainId", "schemaId", "idx", "type", "offset"], ["name"]):
        for domain, schema, idx, kind, offset, name in zip(*part.values(), strict=True):
            # several processes may describe the same schema
            entries.setdefault((domain, schema), {}).setdefault(idx, (kind, offset, name))
        n_entries += len(part["idx"])
        if n_entries > _MOST_ENTRIES:
            break
    # a field may itself be a struct of one number, see `_unwrapped`; its type is that schema's id
    numbers = {
        schema: next(iter(fields.values()))[0]
        for (_, schema), fields in entries.items()
        if len(fields) == 1
    }
    layouts = {
        key: _layout([fields[i] for i in sorted(fields)], numbers)
        for key, fields in entries.items()
    }
    return {key: layout for key, layout in layouts.items() if layout is not None}


def _layout(
    fields: list[tuple], numbers: dict[int, int]
) -> tuple[tuple[str, ...], struct.Struct] | None:
    """Names and layout of a struct; None when a field is no number or lies inside another.

    Args:
        fields: type, offset and name of each.
        numbers: the type of the one number that a schema holds, by the schema's id.
    """
    format, at = "<", 0
    for kind, offset, name in fields:
        kind = kind if kind in _TYPES else numbers.get(kind)
        if kind not in _TYPES or not isinstance(name, str):
            return None
        size = struct.calcsize(_TYPES[kind])
        # without an offset a field follows the one before, aligned to its own size
        start = -(-at // size) * size if offset in (MISSING, 0) else offset
        if not at <= start <= 4096:
            return None
        format, at = f"{format}{start - at}x{_TYPES[kind]}", start + size
    return tuple(name for *_, name in fields), struct.Struct(format)
