"""What replay says of a run, beside what was measured."""

from typing import TYPE_CHECKING

import pandas as pd
import plotly.graph_objects as go

from hspec_lab import figures
from hspec_lab.acceptance_folder import shipped_traces
from hspec_lab.against import against_runs
from hspec_lab.cost import stage_costs
from hspec_lab.stages_folder import shipped_stages
from hspec_lab.terms import ROUND_PHASES

if TYPE_CHECKING:
    from hspec_lab.lab import Run


def beside_prediction(run: "Run", plain: "Run | None") -> go.Figure:
    """Draw the measured breakdown of a run above the one that shipped traces and stages predict.

    Args:
        plain: the ar run beside it, for the speed-up; None: there is none.

    Raises:
        ValueError: no trace or no stages of such a run, and which.
    """
    costs = stage_costs(shipped_stages(), run.config.target, run.config.draft)
    runs = [(one.head, one.rounds, one.spans) for one in (run, plain) if one is not None]
    table = against_runs(runs, shipped_traces(), [costs]).iloc[:1]
    found = table.iloc[0]
    if found["problem"]:
        raise ValueError(found["problem"])
    scale, words = _drift(found)
    note = f"acceptance replayed from {found['trace']}, stages {found['stages']}; {words}"
    if found["warnings"]:
        note += f"; but: {found['warnings']}"
    rows = [*_phases(found, "_measured", "measured", 1.0), *_phases(found, "", "predicted", scale)]
    origin = "measured, and predicted by replay"
    return figures.breakdown_bar(pd.DataFrame(rows), origin=origin, note=note)


def _drift(found: pd.Series) -> tuple[float, str]:
    """How much longer a plain step took beside the run than where stages were measured.

    Machines drift between the two, so a prediction is in plain steps where a run has one.
    """
    steps = found["us_per_token_measured"] / found["ar_steps_measured"]
    if not steps > 0:
        return 1.0, "times as on the day the stages were measured: no ar run lies beside this one"
    scale = float(steps / (found["us_per_token"] / found["ar_steps"]))
    return scale, f"predicted in plain steps of {steps / 1e3:.3g} ms, as the ar run beside it took"


def _phases(found: pd.Series, end: str, words: str, scale: float) -> list[dict]:
    times = {phase: found[f"{phase}_us{end}"] for phase in ROUND_PHASES}
    label = _label(found, end, words)
    return [
        {"label": label, "phase": phase, "us_per_emitted": 0.0 if pd.isna(us) else scale * us}
        for phase, us in times.items()
    ]


def _label(found: pd.Series, end: str, words: str) -> str:
    said = [f"{words}, {found[f'mean_emitted{end}']:.2f} tokens a round"]
    if (speedup := found[f"speedup{end}"]) == speedup:
        said.append(f"{speedup:.2f}× ar")
    return ", ".join(said)
