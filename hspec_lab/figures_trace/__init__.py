"""Figures of traces: what happened when, and the tables of `hspec_lab.analysis`.

Same rules as `figures`: tables in, plotly figures out, one fixed colour per phase.
"""

from hspec_lab.figures_trace.lanes import Lanes, lanes
from hspec_lab.figures_trace.tables import (
    critical_path,
    kernels_by_time,
    limits,
    phase_difference,
    slowest_rounds,
)
from hspec_lab.figures_trace.timeline import caption, time, timeline

__all__ = [
    "Lanes",
    "caption",
    "critical_path",
    "kernels_by_time",
    "lanes",
    "limits",
    "phase_difference",
    "slowest_rounds",
    "time",
    "timeline",
]
