"""One child process that measures, so that the kernel stays free and never loads torch for it.

The child is started with `spawn` when the first job comes, and then kept: its models stay warm.
Cancelling ends it; the next job starts another.  The latest job wins.  What happens comes back
as `Message`s on a thread of this process; nothing here ever waits for the child.
"""

import inspect
import multiprocessing
import os
import pickle
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from hspec_lab.config import Config


@dataclass(frozen=True, slots=True)
class Message:
    """What the child has to say about one job."""

    kind: str  # progress, done, failed
    job: int
    done: float = 0
    total: float = 0
    text: str = ""  # what is being done, the folder written, or the error in one line


class Worker:
    """Runs `measure(config, progress=...)` in a child process, one job at a time."""

    def __init__(self, measure: Callable, notify: Callable[[Message], None], **options):
        """Keep what to call and whom to tell.

        Args:
            measure: a function that a fresh process can import.
            notify: called with each `Message`, on a thread of its own.
            options: handed to `measure` as far as it takes arguments of these names.

        Raises:
            ValueError: `measure` cannot be handed to another process.
        """
        if getattr(measure, "__module__", None) == "__main__":
            raise ValueError("measure must live in a module that another process can import")
        taken = inspect.signature(measure).parameters
        options = {name: value for name, value in options.items() if name in taken}
        try:
            self._measure = pickle.dumps(partial(measure, **options))
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise ValueError(f"measure cannot be handed to another process: {error}") from error
        self._notify = notify
        self._job = 0
        self._busy = False
        self._process = None
        self._pipe = None
        # between the thread that asks and the one that listens
        self._lock = threading.Lock()

    @property
    def busy(self) -> bool:
        """Whether a job is under way."""
        return self._busy

    @property
    def pid(self) -> int | None:
        """The child, if one has been started and not ended."""
        process = self._process
        return process.pid if process else None

    def submit(self, config: Config) -> int:
        """Start measuring `config`, ending whatever is under way; returns the job's number."""
        if self._busy:
            self.cancel()
        with self._lock:
            self._job += 1
            self._busy = True
            if self.pid is None:
                self._start()
            job = (self._job, self._measure, config)
            try:
                self._pipe.send(job)
            except OSError:
                # the idle child has gone and the listener has not said so yet
                self._start()
                self._pipe.send(job)
            return self._job

    def cancel(self) -> None:
        """End the child and forget its job; messages still on the way are dropped."""
        with self._lock:
            self._job += 1
            self._busy = False
            process, self._process, self._pipe = self._process, None, None
        if process:
            process.terminate()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs,), daemon=True)
        self._process.start()
        # ours must be the only copy here, or the end of the child would go unnoticed
        theirs.close()
        listening = (self._process, self._pipe)
        threading.Thread(target=self._listen, args=listening, daemon=True).start()

    def _listen(self, process, pipe) -> None:
        while True:
            try:
                message = pipe.recv()
            except (EOFError, OSError):
                break
            self._deliver(message)
        process.join()
        pipe.close()
        with self._lock:
            ours = self._process is process
            if ours:
                self._process = self._pipe = None
            job = self._job
        if ours and self._busy:
            text = f"the measuring process ended by itself (exit code {process.exitcode})"
            self._deliver(Message("failed", job, text=text))

    def _deliver(self, message: Message) -> None:
        with self._lock:
            if message.job != self._job:
                return
            if message.kind != "progress":
                self._busy = False
        self._notify(message)


def _serve(pipe) -> None:
    """The child: measure what comes through the pipe until the other end is gone."""
    # an interrupted cell sends SIGINT to the whole group; only `cancel` and the kernel's end count
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _silence()
    while True:
        try:
            job, measure, config = pipe.recv()
        except EOFError:
            return
        pipe.send(Message("progress", job, text="loading"))
        pipe.send(_measured(pipe, job, measure, config))


def _measured(pipe, job: int, measure: bytes, config: Config) -> Message:
    def progress(done, total, text=""):
        pipe.send(Message("progress", job, done, total, str(text)))

    try:
        result = pickle.loads(measure)(config, progress=progress)
        return Message("done", job, text=str(result.folder))
    except (Exception, SystemExit) as error:
        first = (str(error).splitlines() or [""])[0]
        return Message("failed", job, text=f"{type(error).__name__}: {first}".rstrip(": "))


def _silence() -> None:
    # a notebook would show the child's prints and bars below whatever cell runs just then
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
