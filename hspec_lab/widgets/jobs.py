"""When a panel works: moves that come together are answered once, slow answers on one thread.

In a kernel the event loop is also what receives the next move, so a move is answered a few
milliseconds after it came: those that were waiting behind it have been taken by then, and only the
last counts.  Outside a running loop (scripts, tests) a timer does the same.
"""

import asyncio
import threading
import time
from collections.abc import Callable

PAUSE_S, AT_MOST_S = 0.008, 0.05


class Soon:
    """Calls `act()` soon after it was asked for, once for however many askings.

    Args:
        pause_s: how long nobody asks before it is called.
        at_most_s: how long after the first asking it is called in any case.
    """

    def __init__(
        self, act: Callable[[], None], pause_s: float = PAUSE_S, at_most_s: float = AT_MOST_S
    ):
        self._act, self._pause_s, self._at_most_s = act, pause_s, at_most_s
        self._lock = threading.RLock()
        self._asked_s: float | None = None
        self._acting = 0
        self._timer = None
        try:
            self._loop = asyncio.get_running_loop()
        except RuntimeError:
            self._loop = None

    @property
    def pending(self) -> bool:
        """Whether something was asked for that has not been done."""
        return self._asked_s is not None or self._acting > 0

    def ask(self) -> None:
        """Have `act` called soon; from any thread."""
        with self._lock:
            first = self._asked_s is None
            if first:
                self._asked_s = time.monotonic()
        if self._loop is not None and self._loop.is_running():
            self._loop.call_soon_threadsafe(self._put_off)
        elif first:
            self._timer = threading.Timer(self._pause_s, self.flush)
            self._timer.daemon = True
            self._timer.start()

    def flush(self) -> None:
        """Call `act` now if it was asked for."""
        with self._lock:
            asked, self._asked_s = self._asked_s, None
            self._acting += asked is not None
        if asked is None:
            return
        # not under the lock: what acts may take others, which whoever asks may hold
        try:
            self._act()
        finally:
            with self._lock:
                self._acting -= 1

    def stop(self) -> None:
        """Forget what was asked for."""
        with self._lock:
            self._asked_s = None

    def _put_off(self) -> None:
        """On the loop: wait until no move came for a moment, but not for ever."""
        asked = self._asked_s
        if asked is None:
            return
        if self._timer is not None:
            self._timer.cancel()
        left = asked + self._at_most_s - time.monotonic()
        self._timer = self._loop.call_later(max(0.0, min(self._pause_s, left)), self.flush)


class Background:
    """One thread that does what is wanted, the latest wish first; `told` is called after each."""

    def __init__(self, told: Callable[[], None]):
        self._told = told
        self._wanted: dict = {}
        self._busy = False
        self._closed = False
        self._change = threading.Condition()

    @property
    def idle(self) -> bool:
        """Whether nothing is being done or waits."""
        return not self._busy and not self._wanted

    def want(self, jobs: dict) -> None:
        """Replace what waits by these jobs: names and what to call, in order."""
        with self._change:
            if self._closed:
                return
            self._wanted = dict(jobs)
            if self._wanted and not self._busy:
                self._busy = True
                threading.Thread(target=self._work, daemon=True).start()

    def close(self) -> None:
        """Drop what waits; what is being done ends by itself and tells nobody."""
        with self._change:
            self._closed, self._wanted = True, {}

    def _work(self) -> None:
        while True:
            with self._change:
                if not self._wanted:
                    self._busy = False
                    return
                name = next(iter(self._wanted))
                job = self._wanted.pop(name)
            try:
                job()
            except Exception:
                # jobs say for themselves what went wrong; one that did not must not stop the others
                pass
            if not self._closed:
                self._told()
