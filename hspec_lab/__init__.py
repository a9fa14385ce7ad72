"""hspec_lab: does speculative decoding still pay at 4 bits, and where does each microsecond go?

Public names resolve on first use, so that looking at recorded runs never imports torch.
"""

from importlib import import_module

__version__ = "0.1.0"

_HOME = {
    "Config": "config",
    "Chain": "config",
    "Eagle2": "config",
    "Refine": "config",
    "Static": "config",
    "run": "api",
    "run_together": "api",
    "Run": "lab",
    "open_store": "lab",
    "Explorer": "widgets",
    "TimelineView": "widgets.timeline",
    "TreeView": "widgets.tree",
    "look": "looking",
}
__all__ = sorted(_HOME)


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module 'hspec_lab' has no attribute {name!r}")
    return getattr(import_module(f"hspec_lab.{_HOME[name]}"), name)


def __dir__():
    return sorted([*globals(), *__all__])
