"""Panels for Jupyter: figures and tables behind controls; imports no torch.

`Explorer` is the panel; `controls`, `known`, `views` and `worker` are its parts: what is asked
for, what the store knows of it, how that is drawn, and the child process that measures.
"""

try:
    import ipywidgets  # noqa: F401
except ImportError as error:
    raise ImportError("panels need ipywidgets: pip install 'hspec-lab[lab]'") from error

from hspec_lab.widgets.explorer import Explorer

__all__ = ["Explorer"]
