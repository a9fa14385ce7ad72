"""What quantization costs and keeps, one row a model: bits, bytes, quality, tokens a round.

bits          stored bits per weight of the decoder layers, scales and zeros included
megabytes     of all matrices that a step reads, as stored
perplexity, kl, agreement, bits_per_byte    see `quality`, on held-out modules that no
              calibration here looks at; kl and agreement against the reference
chain, eagle2, hierspec                     tokens a round, greedy, on prompts from these modules
outliers      share of loud input channels, mean over units, see `layer_quality`
layer_error   squared error of a layer's own contribution, mean over layers; none of a rotated
              model, whose residual stream is in another basis
seconds       what choosing the weights took when they were made; of round-to-nearest, loading
"""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd
import torch

from hspec_lab import zoo
from hspec_lab.config import Config, split_model
from hspec_lab.experiment import conditions
from hspec_lab.formats import Format
from hspec_lab.layer_quality import UNITS, layer_errors, outlier_share
from hspec_lab.model import Checkpoint
from hspec_lab.model.checkpoint import made_from
from hspec_lab.model.shape import read_object
from hspec_lab.pipeline import Models, check, check_sources, fingerprint, folder_of, locate
from hspec_lab.quality import (
    WINDOW,
    Reference,
    fixed_drafts,
    mean_emitted,
    measure_quality,
    text_ids,
)
from hspec_lab.quantize import make_missing
from hspec_lab.text import load_tokenizer

COLUMNS = {
    "model": "str",
    "scheme": "str",
    "bits": "float64",
    "megabytes": "float64",
    "perplexity": "float64",
    "bits_per_byte": "float64",
    "kl": "float64",
    "agreement": "float64",
    "chain": "float64",
    "eagle2": "float64",
    "hierspec": "float64",
    "outliers": "float64",
    "layer_error": "float64",
    "seconds": "float64",
}
_MAX_NEW_TOKENS = 96
_LAYER_WINDOWS = 4


def measure_table(
    models: Sequence[str],
    *,
    reference: str | None = None,
    n_windows: int = 40,
    n_prompts: int = 8,
    threads: int = 2,
    out: Path | None = None,
    progress: Callable[[int, int, str], None] | None = None,
) -> pd.DataFrame:
    """Measure a row for each model, making those that are not made yet.

    Args:
        models: references of one vocabulary.
        reference: what kl and agreement compare with; None: the first model's source at fp32.
        n_windows: of held-out text; all of those modules have fewer than 100.
        n_prompts: decoded with each drafter, at most as many as there are; 0: no drafters.
        out: a JSON file of rows; those it holds, of weights that are still the same, are not
            measured again.
        progress: called with models done, models in all and a few words.

    Raises:
        ValueError: a reference that is wrong, or a file measured in another way.
    """
    if n_windows < 1 or n_prompts < 0 or threads < 1:
        raise ValueError(
            f"windows, prompts and threads must be at least 1, 0 and 1, got {n_windows}, "
            f"{n_prompts} and {threads}"
        )
    reference = reference or _unrounded(models[0])
    how = {"reference": reference, "windows": n_windows, "prompts": n_prompts, "threads": threads}
    rows = _begun(out, how)
    torch.set_num_threads(threads)
    yardstick, texts = None, zoo.held_out("evaluation")
    todo = []
    for model in dict.fromkeys(map(_canonical, models)):
        weights = fingerprint(Config(target=_source(model)))
        if rows.get(model, {}).get("weights") != weights:
            todo.append(model)
    for model in (*todo, reference):
        check_sources(_config(model, texts, n_prompts, threads))
    for done, model in enumerate(todo):
        if progress:
            progress(done, len(todo), model)
        make_missing([model], progress)
        config = _config(model, texts, n_prompts, threads)
        check(config)
        if yardstick is None:
            make_missing([reference], progress)
            yardstick = Reference(Models().transformer(reference, False, "cpu"))
            tokenizer, context = load_tokenizer(folder_of(reference)), yardstick.model.shape.context
            windows = text_ids(tokenizer, texts, window=min(WINDOW, context), n_windows=n_windows)
        rows[model] = _row(model, config, yardstick, windows, n_prompts)
        if out:
            _write(out, how, rows)
    table = pd.DataFrame([rows[_canonical(model)] for model in models])
    return table.reindex(columns=list(COLUMNS)).astype(COLUMNS)


def _unrounded(model: str) -> str:
    """A model's weights as they are in its files; of a quantized folder, those it was made from."""
    where = split_model(model)[0]
    return f"{made_from(locate(where)) or where}@fp32"


def _source(model: str) -> str:
    """The model's own folder, rounded by nothing: what a row depends on beside its format."""
    where, format = split_model(model)
    return f"{where}@{format}" if Checkpoint(locate(where)).format else f"{where}@fp32"


def _canonical(model: str) -> str:
    return "@".join(split_model(model))


def _config(model: str, texts: list[str], n_prompts: int, threads: int) -> Config:
    prompts = [p for p in zoo.prompts() if any(p in text for text in texts)]
    given = {"prompts": tuple(prompts[:n_prompts])} if n_prompts else {"n_prompts": 1}
    return Config(target=model, max_new_tokens=_MAX_NEW_TOKENS, threads=threads, **given)


def _row(model: str, config: Config, yardstick: Reference, windows, n_prompts: int) -> dict:
    models, begun = Models(), time.monotonic()
    transformer = models.transformer(model, False, "cpu")
    seconds = time.monotonic() - begun
    found = measure_quality(transformer, yardstick, windows)
    marks = read_object(folder_of(model) / "config.json").get("hspec", {})
    units = [linear for layer in transformer.layers for linear in layer.linears]
    n_weights = sum(linear.shape[0] * linear.shape[1] for linear in units)
    row = {"model": model, "scheme": split_model(model)[1]}
    row["weights"] = fingerprint(Config(target=_source(model)))
    row |= {
        "bits": 8 * sum(linear.nbytes for linear in units) / n_weights,
        "megabytes": transformer.nbytes / 1e6,
        "seconds": marks.get("seconds", seconds),
    }
    format = Format.parse(row["scheme"])
    row |= _of_layers(transformer, yardstick, windows[:_LAYER_WINDOWS], format)
    row |= {
        name: getattr(found, name) for name in ("perplexity", "bits_per_byte", "kl", "agreement")
    }
    return row | (_emitted(config, models) if n_prompts else {})


def _emitted(config: Config, models: Models) -> dict[str, float]:
    """Tokens a round with each drafter that this model has."""
    drafts = {}
    for name, draft in fixed_drafts("zoo:intermediate@fp32").items():
        try:
            check(replace(config, draft=draft))
        except ValueError:  # another vocabulary than the zoo's, or no head beside it
            continue
        drafts[name] = draft
    return mean_emitted(config, drafts=drafts, models=models) if drafts else {}


def _of_layers(model, yardstick: Reference, windows, format: Format) -> dict[str, float]:
    row = {"outliers": float(outlier_share(model, windows)["share"].mean())}
    if not format.rotates:
        errors = layer_errors(model, yardstick.model, windows)
        row["layer_error"] = float(errors["own"].mean())
    return row


def _begun(out: Path | None, how: dict) -> dict[str, dict]:
    if out is None or not out.is_file():
        return {}
    found = read_object(out)
    if found.get("how") != how:
        raise ValueError(f"{out} was measured with {found.get('how')}, now it is {how}")
    here = conditions("cpu", how["threads"])
    for name in ("cpu", "torch"):
        if found["conditions"].get(name) != here[name]:
            raise ValueError(
                f"{out} was measured with {name} {found['conditions'].get(name)!r}, now it is "
                f"{here[name]!r}: give another file"
            )
    return {row["model"]: row for row in found["rows"]}


def _write(out: Path, how: dict, rows: dict[str, dict]) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    content = {"kind": "measured", "how": how, "conditions": conditions("cpu", how["threads"])}
    half = out.with_suffix(".tmp")
    half.write_text(json.dumps(content | {"rows": list(rows.values())}, indent=1) + "\n")
    half.replace(out)


def layers_text(models: Sequence[str], reference: str | None = None) -> str:
    """Lines for a terminal: of every layer its errors, and the share of loud channels by unit.

    Args:
        models: references that are made.
        reference: as in `measure_table`.
    """
    reference = reference or _unrounded(models[0])
    loaded = Models()
    yardstick = loaded.transformer(reference, False, "cpu")
    texts = zoo.held_out("evaluation")
    windows = text_ids(load_tokenizer(folder_of(reference)), texts, n_windows=_LAYER_WINDOWS)
    parts = []
    for name in models:
        model = loaded.transformer(name, False, "cpu")
        shares = outlier_share(model, windows)
        table = shares.pivot(index="layer", columns="unit", values="share")[list(UNITS)]
        table.columns = [f"loud {unit}" for unit in UNITS]
        if not Format.parse(split_model(name)[1]).rotates:  # its stream is in another basis
            errors = layer_errors(model, yardstick, windows).set_index("layer")
            table = errors.rename(columns={"own": "error", "accumulated": "with those before"})[
                ["error", "with those before"]
            ].join(table)
        parts.append(f"{name}\n{table.round(5).to_string()}")
    return "\n\n".join(parts)


def as_text(table: pd.DataFrame) -> str:
    """The table with sensible digits, one line a model."""
    digits = {"bits": 2, "megabytes": 2, "perplexity": 3, "bits_per_byte": 3, "kl": 4}
    digits |= {"agreement": 3, "chain": 2, "eagle2": 2, "hierspec": 2, "seconds": 1}
    digits |= {"outliers": 3, "layer_error": 5}
    shown = table.drop(columns="scheme").copy()
    for name, n in digits.items():
        shown[name] = shown[name].map(lambda value, n=n: "" if value != value else f"{value:.{n}f}")
    return shown.to_string(index=False)
