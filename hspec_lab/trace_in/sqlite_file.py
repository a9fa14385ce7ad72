"""Read tables of an SQLite file that nobody vouches for.

The file is opened read-only and immutable, so nothing beside it is written.  Only plain tables
are read, by the columns that they really have: views, virtual tables and generated columns are
never touched, so no expression or trigger of the file runs, and an authorizer refuses every
statement but such reads.  Values of another type than expected count as missing.  Lengths of
values and the work of all queries have limits, so that a small file cannot fill the memory.
"""

import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.parse import quote

MISSING = -(2**63)
LONGEST = 8_000  # characters of a name or a payload; what follows is cut
_MAGIC = b"SQLite format 3\0"
_LARGEST = 1 << 24  # bytes of a value or a row
_AT_ONCE = 5_000
_MOST_TEXT, _SHORT = 1 << 26, 100  # characters of all names together, and of each one beyond that
_STEPS, _MOST_STEPS = 1_000_000, 4_000  # steps of SQLite's machine, and how many times as many
_ALLOWED = {
    sqlite3.SQLITE_SELECT,
    sqlite3.SQLITE_READ,
    sqlite3.SQLITE_PRAGMA,
    sqlite3.SQLITE_FUNCTION,
}


class Tables:
    """The plain tables of one open file.

    Attributes:
        columns: the columns of each table.
        refused: views and virtual tables by name.
    """

    def __init__(self, db: sqlite3.Connection):
        self._db = db
        self._texts: dict[str, str] = {}
        self._room = _MOST_TEXT
        self.columns: dict[str, list[str]] = {}
        found = db.execute("SELECT type, name, sql FROM sqlite_master").fetchmany(10_000)
        found = [row for row in found if all(isinstance(part, str) for part in row)]
        plain = [name for kind, name, sql in found if kind == "table" and not _virtual(sql)]
        self.refused = {name for kind, name, _ in found if kind in ("table", "view")} - {*plain}
        for name in plain:
            # table_info lists no generated columns
            quoted = name.replace('"', '""')
            info = db.execute(f'PRAGMA table_info("{quoted}")').fetchall()
            self.columns[name] = [row[1] for row in info]

    def __contains__(self, table: str) -> bool:
        return table in self.columns

    def rows(
        self, table: str, whole: Iterable[str], texts: Iterable[str] = (), where: str = ""
    ) -> Iterator[dict[str, list]]:
        """Yield a table in parts, column by column.

        Args:
            table: one that is there.
            whole: columns of integers; `MISSING` where one is null, absent or something else.
            texts: columns of text, or of bytes; None where one is null, absent or a number.
            where: a condition on these columns, without values of the file.
        """
        here = self.columns[table]
        whole, texts = list(whole), list(texts)
        asked = [f'"{name}"' if name in here else "NULL" for name in whole]
        asked += [f'substr("{name}", 1, {LONGEST})' if name in here else "NULL" for name in texts]
        cursor = self._db.execute(f'SELECT {", ".join(asked)} FROM "{table}" {where}')
        while rows := cursor.fetchmany(_AT_ONCE):
            columns = list(zip(*rows, strict=True))
            part = {
                name: [value if type(value) is int else MISSING for value in values]
                for name, values in zip(whole, columns, strict=False)
            }
            for name, values in zip(texts, columns[len(whole) :], strict=True):
                part[name] = [v if isinstance(v, str | bytes) else None for v in values]
            yield part

    def named(self, table: str, ids: Iterable[int]) -> dict[int, str]:
        """The `value` of each `id` that a table of strings has, and only of those asked for."""
        if not {"id", "value"} <= set(self.columns.get(table, ())):
            return {}
        found: dict[int, str] = {}
        wanted = sorted(set(ids) - {MISSING})
        for first in range(0, len(wanted), _AT_ONCE):
            part = ", ".join(map(str, wanted[first : first + _AT_ONCE]))
            where = f'WHERE "id" IN ({part}) LIMIT {_AT_ONCE}'
            for rows in self.rows(table, ["id"], ["value"], where):
                pairs = zip(rows["id"], rows["value"], strict=True)
                found |= {id: self.kept(value) for id, value in pairs if isinstance(value, str)}
        return found

    def kept(self, text: str) -> str:
        """The same text, held in memory once; cut short when there are too many of them."""
        if text not in self._texts:
            text = text if self._room > 0 else text[:_SHORT]
            self._room -= len(text)
        return self._texts.setdefault(text, text)


@contextmanager
def opened(path: Path | str) -> Iterator[Tables]:
    """Open a file to read its tables.

    Raises:
        ValueError: one line; the file is missing, not SQLite, damaged, or
            takes more work than the largest export.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            magic = file.read(len(_MAGIC))
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None
    if magic != _MAGIC:
        raise ValueError(f"{path} is not an SQLite file")
    address = f"file:{quote(str(path.resolve()))}?mode=ro&immutable=1"
    try:
        with closing(sqlite3.connect(address, uri=True)) as db:
            _guard(db)
            yield Tables(db)
    except sqlite3.Error as error:
        reason = "takes too long to read" if "interrupted" in str(error) else f"damaged: {error}"
        raise ValueError(f"{path} is an SQLite file, but {reason}") from None


def _guard(db: sqlite3.Connection) -> None:
    db.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, _LARGEST)
    db.text_factory = lambda text: text.decode("utf-8", "replace")
    db.execute("PRAGMA trusted_schema = OFF")
    db.execute("PRAGMA cell_size_check = ON")
    db.set_authorizer(_authorized)
    left = iter(range(_MOST_STEPS))
    db.set_progress_handler(lambda: next(left, None) is None, _STEPS)


def _authorized(action: int, first: str | None, second: str | None, *_) -> int:
    allowed = action in _ALLOWED
    if action == sqlite3.SQLITE_PRAGMA:
        allowed = first == "table_info"
    if action == sqlite3.SQLITE_FUNCTION:
        allowed = second == "substr"
    return sqlite3.SQLITE_OK if allowed else sqlite3.SQLITE_DENY


def _virtual(sql: str) -> bool:
    return sql.lstrip().upper().startswith("CREATE VIRTUAL")
