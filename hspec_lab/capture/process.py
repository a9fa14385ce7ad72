"""One command of a profiler as a process of its own: no shell, a log, a time limit."""

import os
import re
import signal
import subprocess
from pathlib import Path

# what a profiler gets to finish its report once it is interrupted
_GRACE_S = 20.0
_ERROR = re.compile(r"^(\w+\.)*\w*(Error|Exception)\b|^hspec: |==ERROR==|\berror\b", re.IGNORECASE)


def run_logged(command: list[str], log: Path, timeout_s: float) -> None:
    """Run a command to its end; what it says goes to a file.

    The process leads a group of its own, and the whole group is ended when the time is over or
    somebody interrupts: first asked to, then made to.

    Args:
        command: its words.
        log: appended to, so that the commands of one capture share a file.
        timeout_s: seconds it may take.

    Raises:
        ValueError: it could not start, took too long or failed; says the line of its output that
            tells most.
    """
    name = " ".join([Path(command[0]).name, *command[1:2]])
    with log.open("ab") as told:
        begun = told.tell()
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=told,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        except OSError as error:
            raise ValueError(f"{name} cannot be started: {error.strerror or error}") from None
        try:
            code = process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise ValueError(f"{name} was ended after {timeout_s:g} s; allow more time") from None
        finally:
            # nothing of it may outlive an interrupted call
            if process.poll() is None:
                _end_group(process)
    if code:
        raise ValueError(f"{name} failed with exit code {code}: {_telling_line(log, begun)}")


def _end_group(process: subprocess.Popen) -> None:
    _signal(process, signal.SIGINT)
    try:
        process.wait(_GRACE_S)
    except subprocess.TimeoutExpired:
        pass
    _signal(process, signal.SIGKILL)
    process.wait()


def _signal(process: subprocess.Popen, number: int) -> None:
    try:
        os.killpg(process.pid, number)
    except (ProcessLookupError, PermissionError):
        pass  # all of the group have ended


def _telling_line(log: Path, begun: int) -> str:
    """The last line that speaks of an error, else the last line."""
    with log.open("rb") as file:
        file.seek(begun)
        text = file.read().decode("utf-8", errors="replace")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    of_errors = [line for line in lines if _ERROR.search(line)]
    return (of_errors or lines or ["it said nothing"])[-1][:300]
