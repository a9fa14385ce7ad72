"""The events of a JSON trace, one after another, from a text that need not fit into memory.

A trace is `{"traceEvents": [...], ...}` or a bare list.  The text passes through a window, in
which one event after another is decoded; the window and one event are all that is held.  Whoever
wrote the file may have died while writing it: what is cut off, broken or no event is left out,
and `notes` says so.

error: none in times.  Floats of events come as the digits that the file has, because a double
       that holds microseconds since 1970 is off by up to 125 ns; `nanoseconds` reads them exactly.
source: Trace Event Format; a closing bracket of a bare list may be missing.
"""

import json
import re
from collections.abc import Iterator
from decimal import Decimal, InvalidOperation

# longer events are left out
MOST_CHARS = 1 << 24
# after so many unreadable places the rest is left out
MOST_BROKEN = 1000
# what else the top level says is kept where it is one of these, and no longer than `MOST_HEAD`
HEAD = (
    "$schema",
    "schemaVersion",
    "baseTimeNanoseconds",
    "deviceProperties",
    "displayTimeUnit",
    "otherData",
)
MOST_HEAD = 1 << 20
# times beyond are none, so that no difference of two leaves 64 bits
MOST_NS = 1 << 61

_SPACE = re.compile(r"\s*")
_BETWEEN = re.compile(r"[\s,]*")
_LIST = re.compile(r'"traceEvents"\s*:\s*(\[)')
# what looks like an event, and is not the value of an entry
_EVENT = re.compile(r'(?:^|[^:\s])\s*(\{\s*"(?:ph|name|cat|pid|tid|ts|dur|id|args|s|bp)"\s*:)')
# neither of the two is longer, blanks apart
_OVERLAP = 64
# a decoder that fails so close to the end of its text may only lack the rest of a word
_WORD = 20


class _BrokenText(Exception):
    """No JSON, or nothing we take, stands here."""


class _CutText(Exception):
    """The text ends here, within a value."""


class Events:
    """Iterates, once, over a trace's events: dictionaries in which floats are strings of digits.

    Attributes:
        head: what else the top level says, of the names in `HEAD`; complete after iterating.
        keys: the first names of the top level.
        n_broken: places between events that are no JSON.
        found: whether there was a list of events.
        notes: one line for each thing that was left out; complete after iterating.
    """

    def __init__(self, pieces: Iterator[str], notes: list[str], most_chars: int = MOST_CHARS):
        """Take a text.

        Args:
            pieces: the text, in pieces of any size.
            notes: where notes go.
            most_chars: longer events are left out.
        """
        self.head, self.keys, self.found, self.notes = {}, [], False, notes
        self._pieces, self._most_chars = iter(pieces), most_chars
        # the window, where in it we are, and how many characters came before it
        self._text, self._at, self._before = "", 0, 0
        self.n_broken, self._long, self._lost = 0, 0, False
        self._event = json.JSONDecoder(strict=False, parse_float=str).raw_decode
        self._plain = json.JSONDecoder(strict=False).raw_decode

    def __iter__(self) -> Iterator[dict]:
        opening = self._next(_SPACE)
        try:
            if opening == "[":
                yield from self._list()
            elif opening == "{":
                yield from self._object()
            if self.found and not self._lost and self._next(_SPACE):
                self.notes.append("more text follows the end of the trace: left out")
        finally:
            if self.n_broken:
                self.notes.append(f"{self.n_broken} places between events are no JSON: left out")
            if self._long:
                long = f"{self._long} events or entries longer than {self._most_chars} characters"
                self.notes.append(f"{long}: left out")

    def _object(self) -> Iterator[dict]:
        self._at += 1
        while (char := self._next(_BETWEEN)) != "}":
            if not char:
                if self.found and not self._lost:
                    self._lose("the file is cut off: its last bracket is missing")
                return
            try:
                at_list = self._at_list()
            except (_BrokenText, _CutText):
                if self.found:
                    self._lose("what follows the events cannot be read: left out")
                    return
                if not self._seek(_LIST):
                    return
                at_list = True
                self.notes.append("something before the events cannot be read: left out")
            if at_list:
                yield from self._list()
        self._at += 1

    def _at_list(self) -> bool:
        """Take one entry of the top level, or say that the list of events begins here."""
        key = self._value(self._plain)
        if type(key) is not str or self._next(_SPACE) != ":":
            raise _BrokenText
        if len(self.keys) < len(HEAD):
            self.keys.append(key[:40])
        self._at += 1
        if self._next(_SPACE) == "[" and key == "traceEvents":
            return True
        begin = self._before + self._at
        value = self._value(self._plain)
        if key in HEAD and self._before + self._at - begin <= MOST_HEAD:
            self.head[key] = value
        return False

    def _list(self) -> Iterator[dict]:
        self.found = True
        self._at += 1
        while (char := self._next(_BETWEEN)) != "]":
            if not char:
                return
            try:
                if char != "{":
                    raise _BrokenText
                event = self._value(self._event)
            except _CutText:
                self._lose("the file is cut off within an event: that one is left out")
                return
            except _BrokenText:
                if not self._resumed():
                    return
            else:
                yield event
        self._at += 1

    def _resumed(self) -> bool:
        """Go to what looks like the next event; False if there is none, or too much was broken."""
        self.n_broken += 1
        if self.n_broken >= MOST_BROKEN:
            self._lose("too much is no JSON: the rest of the events is left out")
            return False
        self._at += 1
        if not self._seek(_EVENT):
            self._lost = True
        return not self._lost

    def _lose(self, note: str) -> None:
        """Say why reading ends here."""
        self._lost = True
        self._text, self._at, self._pieces = "", 0, iter(())
        self.notes.append(note)

    def _next(self, skipped: re.Pattern) -> str:
        """The next character behind what is skipped; "" at the end."""
        while True:
            self._at = skipped.match(self._text, self._at).end()
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._more():
                return ""

    def _value(self, decode):
        """Decode the value that begins here, however many pieces it spans."""
        while True:
            try:
                value, end = decode(self._text, self._at)
            except json.JSONDecodeError as error:
                near = error.pos >= len(self._text) - _WORD
                if not (near or error.msg.startswith("Unterminated string")):
                    raise _BrokenText from None
                if len(self._text) - self._at > self._most_chars:
                    # a sound beginning of that length: nothing else lies in the window
                    self._long, self._at = self._long + 1, len(self._text) - 1
                    raise _BrokenText from None
                if not self._more():
                    raise _CutText from None
            except (RecursionError, ValueError):
                # nested too deep, or a number of thousands of digits
                raise _BrokenText from None
            else:
                # a number that ends with the window may go on
                if end < len(self._text) or self._text[end - 1] in ']}"' or not self._more():
                    self._at = end
                    return value

    def _seek(self, pattern: re.Pattern) -> bool:
        """Go to where the pattern's group begins."""
        while not (match := pattern.search(self._text, self._at)):
            self._at = max(self._at, len(self._text) - _OVERLAP)
            if not self._more():
                return False
        self._at = match.start(1)
        return True

    def _more(self) -> bool:
        """Move the window on by a piece, and drop what lies behind."""
        for piece in self._pieces:
            if piece:
                self._before += self._at
                self._text, self._at = self._text[self._at :] + piece, 0
                return True
        return False


def nanoseconds(us) -> int | None:
    """Whole nanoseconds, exactly, from the microseconds of an event; None: not a time.

    Args:
        us: an int, or digits as `Events` hands them out.
    """
    if type(us) is str:
        whole, _, part = us.partition(".")
        plain = len(part) == 3 and len(us) < 24 and whole.isdecimal() and part.isdecimal()
        ns = int(whole + part) if plain else _rounded(us)
    else:
        ns = us * 1000 if type(us) is int else None
    return ns if ns is not None and -MOST_NS < ns < MOST_NS else None


def _rounded(us: str) -> int | None:
    try:
        number = Decimal(us) if len(us) < 100 else Decimal("nan")
    except InvalidOperation:
        return None
    # bounded before it is written out: 1e999999 is short, its digits are not
    if not number.is_finite() or number.adjusted() > 18:
        return None
    return int((number * 1000).to_integral_value()) if number.adjusted() > -9 else 0
