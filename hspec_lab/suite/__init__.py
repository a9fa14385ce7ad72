"""The GPU suite: everything worth measuring on a CUDA device, by one command, in parts of minutes.

    hspec measure --suite gpu --out FOLDER

FOLDER holds `suite.json`, the conditions, and one table a part; called again with the same folder
the suite goes on where it stopped.  What a part is: `part`; which there are: `run.PARTS`; what the
tables say: `summary`, which needs no torch.
"""

from importlib import import_module

_HOME = {"run_suite": "run", "PARTS": "run", "as_text": "summary"}
__all__ = sorted(_HOME)


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module 'hspec_lab.suite' has no attribute {name!r}")
    return getattr(import_module(f"hspec_lab.suite.{_HOME[name]}"), name)
