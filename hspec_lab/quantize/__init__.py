"""Quantized folders: algorithms that look at a model, its inputs, or both, before they round.

    folder = quantize("zoo:target@w4a16-g128+quarot+gptq", progress=bar)
    run(Config(target="zoo:target@w4a16-g128+quarot+gptq"))        # finds it, or makes it first

`hspec_lab.scheme` names schemes and algorithms; each algorithm is a module here, a function of one
matrix or one layer.  `driver` takes them through a model, `widths` decides bits per unit, `folder`
writes what comes out, `text` is what may be looked at.
"""

from hspec_lab.quantize.driver import Progress, quantize
from hspec_lab.quantize.missing import make_missing
from hspec_lab.quantize.text import Calibration

__all__ = ["Calibration", "Progress", "make_missing", "quantize"]
