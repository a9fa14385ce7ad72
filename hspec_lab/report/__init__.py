"""Pages: one self-contained HTML file that opens offline, in light and in dark, and prints.

page       rows, figures and conditions -> the file
frame      its style, and how it prints
run_page   everything that one run can show, and in a line why it cannot show the rest
predicted  what replay says of a run, beside what was measured
rounds     the figure of a run's rounds in the order in which they ran
"""

from hspec_lab.report.page import COLUMNS, write_report
from hspec_lab.report.rounds import in_order_of_time, rounds_over_time
from hspec_lab.report.run_page import comparable, figures_of

__all__ = [
    "COLUMNS",
    "comparable",
    "figures_of",
    "in_order_of_time",
    "rounds_over_time",
    "write_report",
]
