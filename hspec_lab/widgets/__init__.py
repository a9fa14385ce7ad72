"""Panels for Jupyter: figures and tables behind controls; imports no torch.

`Explorer` is the panel and `Panel` its frame.  `controls` spell a `Choice`; `answers` say what is
predicted of it, from `sources` and `costs`; `known` holds what was measured.  A `Scene` is all of
that at one moment, `pictures` draw it, `views` show the drawing, live or still.  `knowledge` and
`jobs` work in the background, `measuring` and `worker` in a child process.
"""

try:
    import ipywidgets  # noqa: F401
except ImportError as error:
    raise ImportError("panels need ipywidgets: pip install 'hspec-lab[lab]'") from error

from hspec_lab.widgets.explorer import Explorer

__all__ = ["Explorer"]
