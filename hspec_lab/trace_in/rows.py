"""Rows that come one by one, in a few bytes each: typed columns, and every word kept once."""

from array import array

import numpy as np
import pandas as pd

from hspec_lab.timeline import UNKNOWN

# longer words are cut; beyond so many characters in all, new ones are no longer told apart
MOST_WORD = 4096
MOST_WORDS = 1 << 28
# tables repeat words by row: no column holds more characters than this
MOST_REPEATED = 1 << 30
_TOO_MANY = "(one of too many names)"
_INT64 = 1 << 63


class Words:
    """Numbers words; several tables may share one."""

    def __init__(self):
        """Know no word yet, but what stands for anything that is none."""
        self._numbers, self._n_chars = {"": 0}, 0
        self.cut = False

    def number(self, word) -> int:
        """The number of a word; anything but a string counts as ""."""
        if type(word) is not str:
            return 0
        found = self._numbers.get(word)
        return self._add(word) if found is None else found

    def _add(self, word: str) -> int:
        if len(word) > MOST_WORD:
            self.cut = True
            word = word[:MOST_WORD]
        if self._n_chars > MOST_WORDS:
            self.cut = True
            word = _TOO_MANY
        # JSON can say half a surrogate pair, which no table holds
        word = word.encode("utf-8", "replace").decode("utf-8")
        found = self._numbers.setdefault(word, len(self._numbers))
        if found == len(self._numbers) - 1:
            self._n_chars += len(word)
        return found

    def all(self) -> list[str]:
        """Every word, by number."""
        return list(self._numbers)


class Rows:
    """A table that grows by rows."""

    def __init__(self, columns: dict[str, str], words: Words):
        """Make an empty table.

        Args:
            columns: names and kinds, as in `timeline.RANGES`.
            words: numbers what columns of strings hold.
        """
        self._kinds, self._words = columns, words
        self._arrays = [array("d" if kind == "float64" else "q") for kind in columns.values()]

    def __len__(self) -> int:
        return len(self._arrays[0])

    def add(self, *values) -> None:
        """Add a row: ints within 64 bits, floats, and for strings their numbers."""
        for column, value in zip(self._arrays, values, strict=True):
            column.append(value)

    def largest(self, name: str) -> int | None:
        """The largest number of a column, None without rows."""
        column = self._arrays[list(self._kinds).index(name)]
        return int(np.frombuffer(column, "int64").max()) if column else None

    def frame(self) -> pd.DataFrame:
        """The table so far."""
        found = {}
        for (name, kind), column in zip(self._kinds.items(), self._arrays, strict=True):
            values = np.array(column, dtype="float64" if kind == "float64" else "int64")
            if kind == "str":
                values = self._spelled(values)
            found[name] = values != 0 if kind == "bool" else values
        return pd.DataFrame(found)

    def _spelled(self, numbers: np.ndarray) -> np.ndarray:
        words = self._words.all()
        lengths = np.array([len(word) for word in words])
        if lengths[numbers].sum() > MOST_REPEATED:
            self._words.cut = True
            words = [word[: MOST_REPEATED // len(numbers)] for word in words]
        return np.array(words, dtype=object)[numbers]


def whole(value, unknown: int = UNKNOWN) -> int:
    """An int of 64 bits from what JSON held, `unknown` if it is none."""
    if type(value) is str and len(value) < 20:
        try:
            value = int(value)
        except ValueError:
            return unknown
    return value if type(value) is int and -_INT64 <= value < _INT64 else unknown
