"""Try one chain at several lengths and lay predictions beside what was measured."""

from collections.abc import Sequence
from dataclasses import replace

import pandas as pd

from hspec_lab.acceptance_folder import Trace
from hspec_lab.config import Chain, Config
from hspec_lab.confirm import confirm
from hspec_lab.experiment import Progress
from hspec_lab.matching import origin_of
from hspec_lab.predict import predict
from hspec_lab.stages import StageCosts


def try_lengths(
    config: Config,
    lengths: Sequence[int],
    trace: Trace,
    stages: StageCosts,
    *,
    repeats: int = 5,
    progress: Progress | None = None,
) -> pd.DataFrame:
    """Measure chains of several lengths in turns with plain decoding, beside their predictions.

    Args:
        config: with a `Chain`, whose own length does not matter, and prompts, those of the trace.
        lengths: tokens of the chains, ten of them at most.
        stages: of the config's models.
        repeats: turns, see `confirm.confirm`.

    Returns:
        one row a length: draft_len, method, format, mean_emitted, speedup, ar_steps (time per
        token in plain steps) with `ar_steps_low` and `ar_steps_high`, each also measured, as
        `<name>_measured`, and error, of ar_steps; `attrs` for a figure.

    Raises:
        ValueError: the drafter is no chain, or what `confirm` and `predict` say.
    """
    if not isinstance(config.draft, Chain):
        raise ValueError(f"lengths are those of a Chain, got {config.draft!r}")
    configs = [replace(config, draft=replace(config.draft, draft_len=n)) for n in lengths]
    sizes = {"n_prompts": len(config.prompts), "max_new_tokens": config.max_new_tokens}
    measured = confirm(configs, **sizes, repeats=repeats, progress=progress)
    rows = [_row(row, trace, stages) for row in measured.to_dict("records") if row["draft"]]
    table = pd.DataFrame(rows).sort_values("draft_len", ignore_index=True)
    table["error"] = table["ar_steps"] / table["ar_steps_measured"] - 1
    note = f"{stages.device}, {sizes['n_prompts']} prompts x {sizes['max_new_tokens']} tokens"
    table.attrs = {"origin": origin_of(stages), "note": f"{note}, {repeats} turns each"}
    return table


def _row(measured: dict, trace: Trace, stages: StageCosts) -> dict:
    found, draft = predict(trace, measured["draft"], stages), measured["draft"]
    row = {"draft_len": draft.draft_len, "method": "chain", "format": trace.config.format}
    for name in ("mean_emitted", "speedup", "ar_steps", "ar_steps_low", "ar_steps_high"):
        row[name] = getattr(found, name)
    for name in ("mean_emitted", "speedup", "ar_steps"):
        row[f"{name}_measured"] = measured[name]
    for end in ("low", "high"):
        row[f"ar_steps_measured_{end}"] = measured[f"ar_steps_{end}"]
    return row
