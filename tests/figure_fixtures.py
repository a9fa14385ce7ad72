"""Every public figure function with small tables for it, and hostile words where text is free."""

import importlib
import inspect
import pkgutil

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from test_figures import BREAKDOWN, SPEEDS
from test_figures_bits import CELLS, CURVES, DRAFTING
from test_figures_cost import stages
from test_figures_cost import table as costs
from test_figures_predict import BARS, BEST, GRID, RUNS
from test_figures_trace import BY_KERNEL, DIFFERENCE, LIMITS, PATH, ROUND, SLOW

import hspec_lab
from hspec_lab import paper
from hspec_lab.device import load
from hspec_lab.report import in_order_of_time

HOSTILE = "<script>alert(1)</script>"
# what comes from users, models and tools: any letters at all
_FREE = (
    "label",
    "why",
    "name",
    "phases",
    "model",
    "device",
    "setting",
    "piece",
    "choice_piece",
)
ROUNDS = pd.DataFrame(
    {
        **{"prompt": [0] * 6 + [1] * 6, "round": [*range(6)] * 2, "warmup": [True] + [False] * 11},
        **{"n_emitted": [1, 3, 0] * 4, "start_us": np.arange(12) * 1e3},
        "duration_us": np.linspace(801.25, 999.5, 12),
    }
)
ROOF = pd.DataFrame(
    [("m", "w8a8", 1, 2.1, 3.3e10, "int8"), ("m", "w8a8", 64, 130.5, 1.7e12, "int8")],
    columns="model scheme n intensity rate operand".split(),
)
WIDTHS = pd.DataFrame(
    [("h200", "fp32", 64, "int8"), ("h200", "w8a8", 24, "memory")],
    columns="device format width bound_by".split(),
)
CEILINGS = pd.DataFrame(
    [("w8a8", 1, "memory", 12.345), ("w8a8", 1, "compute", 1.25), ("w8a8", 1, "unpacking", 0.0)],
    columns="format n bound us".split(),
)
REGISTERS = pd.DataFrame(
    [("accept", "32 rows", "sm_80", 40, 0, 1024), ("product", "64 rows", "sm_90", 255, 8, 4096)],
    columns="operation configuration target registers spilled shared".split(),
)
CONTEST = BEST.assign(device="h200", setting=BEST["label"])
NODES = pd.DataFrame(
    [
        (0, -1, 0, "def", "", np.nan, -1, np.nan, -1, True, " f", 0.5, 0.25),
        (1, 0, 1, " f", "head", 0.8125, 0, 0.625, 0, True, "(", 0.75, np.nan),
        (2, 0, 1, " g", "head", 0.125, 1, 0.25, 1, False, "(", 0.5, np.nan),
    ],
    columns="node parent depth piece source p_draft rank p_model model_rank accepted choice_piece"
    " choice_p choice_p_draft".split(),
).assign(prompt=0, round=3, level="target", step=0, token=7, choice=8)
FIXTURES = {
    "figures.breakdown_bar": lambda: (BREAKDOWN,),
    "figures.emitted_per_round": lambda: (
        pd.DataFrame({"method": ["eagle2", "chain", "chain"], "n_emitted": [1, 3, 1]}),
    ),
    "figures.speedup_bars": lambda: (SPEEDS,),
    "figures.tokens_per_s_bars": lambda: (SPEEDS.rename(columns={"speedup": "tokens_per_s"}),),
    "figures_bits.cost_curves": lambda: (CURVES,),
    "figures_bits.drafting_bars": lambda: (DRAFTING,),
    "figures_bits.emitted_map": lambda: (CELLS,),
    "figures_bits.predicted_against_measured": lambda: (CELLS,),
    "figures_bits.speedup_over_size": lambda: (CELLS,),
    "figures_contest.methods_by_device": lambda: (CONTEST,),
    "figures_cost.cost_curves": lambda: (pd.concat([costs("w8a8"), costs("fp32", tile=16)]),),
    "figures_cost.stage_curves": lambda: (
        stages(intermediate="i", intermediate_us=np.array([np.nan, 40, 50.125])),
    ),
    "figures_kernels.product_ceilings": lambda: (CEILINGS,),
    "figures_kernels.registers_by_operation": lambda: (REGISTERS,),
    "figures_paper.bars_beside": lambda: (paper.cells(),),
    "figures_paper.errors_by_cell": lambda: (paper.cells(),),
    "figures_paper.headlines_beside": lambda: (paper.cells(),),
    "figures_predict.acceptance_map": lambda: (GRID,),
    "figures_predict.best_bars": lambda: (BEST,),
    "figures_predict.phase_bars": lambda: (BARS,),
    "figures_predict.predicted_vs_measured": lambda: (RUNS,),
    "figures_predict.speedup_over_size": lambda: (GRID,),
    "figures_trace.critical_path": lambda: (PATH,),
    "figures_trace.kernels_by_time": lambda: (BY_KERNEL,),
    "figures_trace.limits": lambda: (LIMITS,),
    "figures_trace.phase_difference": lambda: (DIFFERENCE,),
    "figures_trace.slowest_rounds": lambda: (SLOW,),
    "figures_trace.timeline": lambda: (ROUND,),
    "figures_tree.tree_figure": lambda: (NODES,),
    "figures_width.device_roofline": lambda: (ROOF, load("h200")),
    "figures_width.width_bars": lambda: (WIDTHS,),
    "report.rounds_over_time": lambda: (in_order_of_time(ROUNDS),),
}


def figure_functions() -> dict[str, callable]:
    """Every public function of figure modules that returns a figure, by module and name."""
    modules = [name for _, name, _ in pkgutil.iter_modules(hspec_lab.__path__)]
    found = {}
    for module in [name for name in modules if name.startswith("figures") or name == "report"]:
        loaded = importlib.import_module(f"hspec_lab.{module}")
        for name, value in vars(loaded).items():
            own = inspect.isfunction(value) and value.__module__.startswith(loaded.__name__)
            whole = loaded.__name__ == getattr(value, "__module__", "") or hasattr(
                loaded, "__path__"
            )
            if own and whole and not name.startswith("_") and _draws(value):
                found[f"{module}.{name}"] = value
    return found


def _draws(function) -> bool:
    return inspect.signature(function).return_annotation in (go.Figure, "go.Figure")


def drawn(name: str, hostile: bool = False, **said) -> go.Figure:
    """A figure of its fixture; `said` is passed on where the function takes it."""
    function, arguments = figure_functions()[name], FIXTURES[name]()
    if hostile:
        arguments = [_hostile(one) for one in arguments]
    taken = inspect.signature(function).parameters
    return function(*arguments, **{key: value for key, value in said.items() if key in taken})


def _hostile(data):
    """The same with a tag in front of all free text."""
    if not isinstance(data, pd.DataFrame):
        return data
    return data.assign(**{name: HOSTILE + data[name] for name in _FREE if name in data})
