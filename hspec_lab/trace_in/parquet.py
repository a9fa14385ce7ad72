"""Our own export as a folder of Parquet tables, back as it was.

A few kilobytes of Parquet can stand for any number of rows, and one word for a gigabyte of them:
both are counted before a table is made, and columns of other types than ours are refused.
"""

import json
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow import ArrowException

from hspec_lab.timeline import Timeline
from hspec_lab.trace_in.ranges import COLUMNS, check_version, restored
from hspec_lab.trace_in.rows import MOST_REPEATED

HEAD = "timeline.json"
# of a table, and its bytes uncompressed; no export of a run comes near
MOST_ROWS, MOST_BYTES = 5_000_000, 1 << 31
_KINDS = {
    "int64": pa.types.is_int64,
    "float64": pa.types.is_float64,
    "bool": pa.types.is_boolean,
    "str": lambda kind: pa.types.is_string(kind) or pa.types.is_large_string(kind),
}


def read(folder: Path) -> Timeline:
    """Read a folder that our export wrote.

    Raises:
        ValueError: a file is damaged, of another version, or the ranges are missing.
    """
    head = _head(folder / HEAD)
    tables, notes = {}, []
    for name in COLUMNS:
        path = folder / f"{name}.parquet"
        if path.is_file():
            tables[name] = _table(path, name)
        elif name == "ranges":
            raise ValueError(f"{path} is missing")
        else:
            notes.append(f"{path.name} is missing: no {name}")
    return restored(head, tables, notes, folder)


def _head(path: Path) -> dict:
    try:
        head = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{path} is missing") from None
    except (OSError, ValueError, RecursionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{path} is damaged or cut off: {reason}") from None
    if not isinstance(head, dict):
        raise ValueError(f"{path} holds no object")
    check_version(head, path)
    return head


def _table(path: Path, name: str) -> pd.DataFrame:
    try:
        with pq.ParquetFile(path) as file:
            _check(path, name, file)
        with pq.ParquetFile(path, read_dictionary=_words(name)) as file:
            found = file.read(list(COLUMNS[name]), use_threads=False)
        return _spelled(path, found).to_pandas(ignore_metadata=True)
    except (OSError, ArrowException) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{path} is damaged or cut off: {reason}") from None


def _words(name: str) -> list[str]:
    return [column for column, kind in COLUMNS[name].items() if kind == "str"]


def _check(path: Path, name: str, file: pq.ParquetFile) -> None:
    """Refuse what is no table of ours, or too much, by what the file says of itself."""
    columns, schema = COLUMNS[name], file.schema_arrow
    if missing := [column for column in columns if schema.names.count(column) != 1]:
        raise ValueError(f"{path} lacks the columns {missing}, or has them twice")
    about = file.metadata
    n_bytes = sum(about.row_group(at).total_byte_size for at in range(about.num_row_groups))
    if about.num_rows > MOST_ROWS or n_bytes > MOST_BYTES:
        raise ValueError(
            f"{path} has {about.num_rows:,} rows in {n_bytes:,} bytes; read are at most "
            f"{MOST_ROWS:,} in {MOST_BYTES:,}"
        )
    for column, kind in columns.items():
        found = schema.field(column).type
        found = found.value_type if pa.types.is_dictionary(found) else found
        if not _KINDS[kind](found):
            raise ValueError(f"{path}: {column} holds {str(found)[:40]}, not {kind}")


def _spelled(path: Path, found: pa.Table) -> pa.Table:
    """With words instead of their numbers, unless they would fill the memory."""
    for at, name in enumerate(found.column_names):
        column = found.column(at)
        if pa.types.is_dictionary(column.type):
            longest = max(
                (pc.max(pc.binary_length(part.dictionary)).as_py() or 0 for part in column.chunks),
                default=0,
            )
            if longest * len(column) > MOST_REPEATED:
                raise ValueError(f"{path}: {name} repeats words of {longest:,} bytes too often")
            column = pc.cast(column, pa.large_string())
            found = found.set_column(at, name, column)
    return found
