"""Predictions beside what was measured, for every stored run; no torch.

table = against_runs([(run.head, run.rounds, run.spans) for run in open_store()], traces, costs)
accuracy(table)

Machines drift between runs, so times are compared in plain (ar) steps: the prediction's from its
stages, the run's from the ar run beside it.
"""

from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd

from hspec_lab import breakdown
from hspec_lab.acceptance import check_covered
from hspec_lab.acceptance_folder import Trace
from hspec_lab.config import Config, from_dict, split_model
from hspec_lab.matching import as_recorded, models_of, same_model
from hspec_lab.predict import predict
from hspec_lab.prediction import Prediction
from hspec_lab.stages import StageCosts
from hspec_lab.terms import ROUND_PHASES

_NUMBERS = ("mean_emitted", "us_per_token", "ar_steps")


def against_runs(
    runs: Iterable[tuple[dict, pd.DataFrame, pd.DataFrame]],
    traces: Sequence[Trace],
    costs: Sequence[StageCosts],
) -> pd.DataFrame:
    """Predict every run and put what was measured beside it.

    The trace with the fewest levels in another scheme is taken; a scheme is all that may differ.
    Stages must be of the run's own models and device.

    Args:
        runs: (head, rounds, spans) of each.

    Returns:
        one row a run: config_id, method, format, device, trace, stages (their origin);
        mean_emitted, us_per_token and ar_steps with `_low` and `_high`, each also as
        `<name>_measured`; the relative errors emitted_error, us_error and error (of ar_steps);
        us per emitted token by phase, `<phase>_us` and `<phase>_us_measured`; speedup, and
        speedup_measured over the ar run beside it; warnings of the prediction; yardstick, why no
        ar run lies beside it; problem, why there is no prediction.  `attrs` hold the keyword
        arguments of a figure.
    """
    runs = list(runs)
    measured = breakdown.speedups(runs)
    rows = [
        _row(run, plain, traces, costs)
        for run, plain in zip(runs, measured.to_dict("records"), strict=True)
    ]
    table = pd.DataFrame(rows, columns=_columns())
    table["emitted_error"] = table["mean_emitted"] / table["mean_emitted_measured"] - 1
    table["us_error"] = table["us_per_token"] / table["us_per_token_measured"] - 1
    table["error"] = table["ar_steps"] / table["ar_steps_measured"] - 1
    table.attrs = _caption(table)
    return table


def accuracy(table: pd.DataFrame) -> dict[str, float]:
    """How far predictions are off, in ar steps.

    Args:
        table: from `against_runs`.

    Returns:
        n, the runs compared; median and p95 of |predicted / measured - 1|; emitted_median, the
        median of the same for tokens per round.  NaN where nothing can be compared.
    """
    found = table.dropna(subset="error")
    error, emitted = found["error"].abs(), found["emitted_error"].abs()
    return {
        "n": len(found),
        "median": float(error.median()),
        "p95": float(error.quantile(0.95)),
        "emitted_median": float(emitted.median()),
    }


def _columns() -> list[str]:
    about = ["config_id", "method", "format", "device", "trace", "stages"]
    numbers = [f"{name}{end}" for name in _NUMBERS for end in ("", "_low", "_high", "_measured")]
    more = ["ar_steps_measured_low", "ar_steps_measured_high", "speedup", "speedup_measured"]
    errors = ["emitted_error", "us_error", "error"]
    phases = [f"{phase}_us{end}" for phase in ROUND_PHASES for end in ("", "_measured")]
    return [*about, *numbers, *more, *errors, *phases, "warnings", "yardstick", "problem"]


def _row(run: tuple, plain: dict, traces: Sequence[Trace], costs: Sequence[StageCosts]) -> dict:
    head = run[0]
    device = device_of(head["environment"])
    row = {name: head[name] for name in ("config_id", "method", "format")} | {"device": device}
    row |= _measured(run, plain) | {"warnings": "", "problem": ""}
    try:
        config = from_dict(head["config"])
        stages, trace = _stages_of(config, device, costs), _trace_of(config, traces)
        prompts, words = _prompts_of(trace, head["prompts"])
        options = {"max_new_tokens": config.max_new_tokens, "prompts": prompts}
        found = predict(trace, config.draft, stages, allow=("scheme",), **options)
        row |= _predicted(found) | {"trace": trace.name, "stages": stages.origin}
        row["warnings"] = "; ".join([*words, *found.warnings])
    except ValueError as error:
        row["problem"] = str(error)
    return row


def device_of(environment: dict) -> str:
    """What stages call the device on which a run was made."""
    if environment.get("gpu"):
        return environment["gpu"]
    return f"{environment.get('cpu')}, {environment.get('threads')} threads"


def _measured(run: tuple, plain: dict) -> dict:
    _, rounds, spans = run
    rounds_that_count = rounds[~rounds["warmup"].astype(bool)]
    phases = breakdown.phase_table(rounds, spans).set_index("phase")["us_per_emitted"]
    n_emitted = rounds_that_count["n_emitted"].sum()
    return {
        "mean_emitted_measured": n_emitted / (len(rounds_that_count) or np.nan),
        "us_per_token_measured": rounds_that_count["duration_us"].sum() / (n_emitted or np.nan),
        "ar_steps_measured": 1 / plain["speedup"],
        "ar_steps_measured_low": 1 / plain["speedup_high"],
        "ar_steps_measured_high": 1 / plain["speedup_low"],
        "speedup_measured": plain["speedup"],
        "yardstick": plain["reason"],
    } | {f"{phase}_us_measured": us for phase, us in phases.items()}


def _predicted(found: Prediction) -> dict:
    numbers = {
        f"{name}{end}": getattr(found, f"{name}{end}")
        for name in _NUMBERS
        for end in ("", "_low", "_high")
    }
    phases = found.phases.set_index("phase")["us_per_emitted"]
    return (
        numbers | {"speedup": found.speedup} | {f"{phase}_us": us for phase, us in phases.items()}
    )


def _stages_of(config: Config, device: str, costs: Sequence[StageCosts]) -> StageCosts:
    """The stages of a config's own models on its own device; ValueError when there are none."""
    if config.row_invariant:
        raise ValueError("its passes are row-invariant, those of the stages are not")
    wanted = models_of(config.target, config.draft)
    for one in costs:
        named = {level: getattr(one, level) for level in wanted}
        fits = all(name is None or same_model(wanted[level], name) for level, name in named.items())
        below = config.draft is None or ("intermediate" in wanted) == (one.intermediate is not None)
        if one.device == device and fits and below:
            return one
    models = ", ".join(wanted.values())
    raise ValueError(f"no stages of {models} on {device} among {len(costs)}: measure them there")


def _trace_of(config: Config, traces: Sequence[Trace]) -> Trace:
    """The trace that covers a config with the fewest levels in another scheme."""
    wanted, found, reasons = models_of(config.target, config.draft), [], []
    for trace in traces:
        theirs = models_of(trace.config.target, trace.draft)
        try:
            check_covered(trace, as_recorded(trace, config.draft))
        except ValueError as error:
            # what a trace of the same kind lacks says most
            place = 0 if type(trace.draft) is type(config.draft) else len(reasons)
            reasons.insert(place, str(error))
            continue
        pairs = [(wanted[level], theirs[level]) for level in wanted]
        is_same = all(split_model(one)[0] == split_model(other)[0] for one, other in pairs)
        if is_same and trace.config.temperature == config.temperature:
            found.append((sum(not same_model(*pair) for pair in pairs), len(found), trace))
    if found:
        return min(found)[2]
    why = f" ({reasons[0]})" if reasons else ""
    models = ", ".join(wanted.values())
    heat = f"temperature {config.temperature:g}"
    raise ValueError(f"no trace of {models} at {heat} among {len(traces)}{why}")


def _prompts_of(trace: Trace, asked: list[str]) -> tuple[list[int] | None, list[str]]:
    """Numbers of a run's prompts in a trace; all of the trace's, and so said, where some lack."""
    numbers = {prompt: number for number, prompt in enumerate(trace.head["prompts"])}
    found = [numbers[prompt] for prompt in asked if prompt in numbers]
    if len(found) == len(asked):
        return found, []
    return None, [f"{len(asked) - len(found)} of {len(asked)} prompts were not recorded"]


def _caption(table: pd.DataFrame) -> dict[str, str]:
    known = table[table["problem"] == ""]
    told = ", ".join(known["stages"].unique())
    note = f"{len(table)} stored runs"
    if len(known) < len(table):
        note += f", {len(table) - len(known)} of them without a prediction"
    traces = ", ".join(known["trace"].unique())
    parts = [note, f"acceptance replayed from {traces}" if traces else ""]
    parts += [", ".join(table["device"].unique())]
    if warnings := [words for words in known["warnings"].unique() if words]:
        parts.append(f"but: {'; '.join(warnings)}")
    origin = f"acceptance replayed, stages {told or 'missing'}"
    return {"origin": origin, "note": "; ".join(filter(None, parts))}
