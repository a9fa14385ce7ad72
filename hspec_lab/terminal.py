"""What commands say beside their output: one line, or a progress bar, both on stderr."""

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager


def say(line: str) -> None:
    """One line that names the program."""
    print(f"hspec: {line}", file=sys.stderr)


@contextmanager
def bar(unit: str = "token") -> Iterator:
    """A progress bar, told as `experiment.Progress` says; it appears when first told."""
    from tqdm import tqdm

    shown = None
    # a log file needs no ten lines a second
    pace = {"mininterval": 0.1 if sys.stderr.isatty() else 10, "unit": unit}

    def progress(done: int, total: int, text: str) -> None:
        nonlocal shown
        if shown is None or shown.total != total:
            close()
            shown = tqdm(file=sys.stderr, leave=False, dynamic_ncols=True, total=total, **pace)
        shown.set_description_str(text, refresh=False)
        shown.update(done - shown.n)

    def close() -> None:
        if shown is not None:
            shown.close()

    try:
        yield progress
    finally:
        close()


def command(commands, name: str, run, words: str) -> argparse.ArgumentParser:
    """A subcommand whose `run(options)` gives the exit code."""
    parser = commands.add_parser(name, help=words, description=words, allow_abbrev=False)
    parser.set_defaults(command=run)
    return parser
