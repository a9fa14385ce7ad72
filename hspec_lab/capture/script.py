"""A program that decodes one configuration, and the commands that watch it, as files to take along.

The program holds the configuration itself; where it runs it needs hspec_lab, the models that the
configuration names and, to be watched, the profiler.
"""

import json
import shlex
import sys
from importlib.metadata import version
from pathlib import Path

from hspec_lab.config import Config, as_dict

# no name of a standard module: the script's folder comes first where modules are looked up
SCRIPT = "traced_run.py"
COMMAND = "command.sh"
RUNS = "runs"
# says whose a file is, so that nobody else's is replaced
_MARK = "made by `hspec trace`"
_PROGRAM = '''\
"""Decode one configuration while a profiler watches; {mark}.

    python {name} [DIR]     DIR: where the run's folder goes; -: nowhere; default: beside this file

Needs hspec_lab (made with {version}) and the models named below; a folder's name is looked up from
where this is started.
"""

import json
import sys
from pathlib import Path

from hspec_lab.capture.record import watched_run

CONFIG = json.loads(
    r"""{config}"""
)

if __name__ == "__main__":
    where = sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parent / "{runs}"
    folder = watched_run(CONFIG, None if where == "-" else where, {arguments})
    if folder is not None:
        print(folder)
'''
_SHELL = """\
#!/bin/sh
# {mark}: watches {name} where {tool} is installed.
# Start it from where the models' folders are found: sh {command}
set -e
here=$(cd "$(dirname "$0")" && pwd)
{lines}
"""


def program_text(config: Config, *, n_rounds: int | None = None, modules: bool = False) -> str:
    """Return the text of a program that decodes a configuration.

    Args:
        config: what it decodes.
        n_rounds: of the first prompt only so many rounds; None: all prompts to their end.
        modules: it times attention, mlp and lm_head, too.
    """
    # JSON escapes quotes, so that three in a row never occur inside it
    return _PROGRAM.format(
        mark=_MARK,
        name=SCRIPT,
        version=version("hspec-lab"),
        config=json.dumps(as_dict(config), indent=4),
        runs=RUNS,
        arguments=f"n_rounds={n_rounds!r}, modules={modules!r}",
    )


def shell_text(commands: list[list[str]], folder: Path, then: str = "") -> str:
    """Return commands as a shell script that may lie anywhere.

    Args:
        commands: lists of words; the first word of the first one is the profiler.
        folder: the one that their paths are in, which the script replaces by its own.
        then: a last line of shell, in which `$here` is that folder.
    """
    lines = [" ".join(_quoted(word, str(folder)) for word in command) for command in commands]
    return _SHELL.format(
        mark=_MARK,
        name=SCRIPT,
        command=COMMAND,
        tool=Path(commands[0][0]).name,
        lines="\n".join([*lines, *filter(None, [then])]),
    )


def put(folder: Path, name: str, text: str) -> Path:
    """Write a file of this module; an older one is replaced.

    Raises:
        ValueError: a file of this name is there that is not ours.
    """
    path = folder / name
    if path.exists() and _MARK not in path.read_text(encoding="utf-8", errors="replace"):
        raise ValueError(f"{path} exists and is not of hspec trace; name another folder by --out")
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def _quoted(word: str, folder: str) -> str:
    if word == sys.executable:
        return '"${PYTHON:-python3}"'
    before, found, after = word.partition(folder)
    if not found:
        return shlex.quote(word)
    return (shlex.quote(before) if before else "") + '"$here"' + shlex.quote(after)
