"""What a timeline or a recorded run says: torch-free tables, each from one function.

attribution  which phase of which round each kernel belongs to
kernels      kernels by time, phases, and what devices did and waited for
critical     what each instant of a round went to
rounds       rounds one by one, the slowest and why
difference   two runs, phase by phase, with intervals
limits       phases beside what the device could do
text         all of it as tables, and as a terminal shows it
"""

from hspec_lab.analysis.attribution import attribute
from hspec_lab.analysis.critical import critical_path
from hspec_lab.analysis.kernels import by_kernel, by_phase, device_summary, device_table
from hspec_lab.analysis.rounds import per_round, slowest
from hspec_lab.analysis.text import as_text, report

__all__ = [
    "as_text",
    "attribute",
    "by_kernel",
    "by_phase",
    "critical_path",
    "device_summary",
    "device_table",
    "per_round",
    "report",
    "slowest",
]
