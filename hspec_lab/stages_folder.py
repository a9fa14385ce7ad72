"""Stages measured in real rounds, on disk: one row per span and per round; no torch.

<folder>/stages.json      schema, kind, conditions, plan, fingerprints of weights, sessions
         stages.parquet   see `STAGES`; raw values, so medians are taken when it is read

A group is what was measured in one go: one target and one drafter below it, whose sizes were drawn
anew before every round.  `draft` is the drafter with the largest of them, as JSON (`draft_text`).
"""

import json
from dataclasses import replace
from importlib import resources
from pathlib import Path

import pandas as pd
from pyarrow import ArrowException

from hspec_lab.config import (
    Chain,
    Config,
    Drafting,
    Eagle2,
    Refine,
    as_dict,
    from_dict,
    split_model,
)
from hspec_lab.store import read_head_file, replace_file
from hspec_lab.study_folder import SAME_CONDITIONS, check_same

SCHEMA_VERSION = 1
# what must not change within a folder, beside `SAME_CONDITIONS`
SAME_PLAN = ("prompts", "n_prompts", "max_new_tokens")
GROUP = ["target", "draft"]
STAGES = {
    "target": "str",
    "draft": "str",  # the group's, in plain rounds too
    "method": "str",  # of the round: ar for the plain ones in between
    "turn": "int64",
    "prompt": "int64",
    "round": "int64",  # counted over all prompts of the method
    "phase": "str",  # a round's phase, `round` for the whole of it, or `prefill` with round -1
    "level": "str",
    "n_tokens": "int64",  # of a whole round: the rows that its target verified
    "kv_len": "int64",
    "tree_size": "int64",  # nodes of the head's draft, the root included; 0 without a head
    "depth": "int64",
    "top_k": "int64",
    "at_least": "int64",  # of a chain its length; 0 without
    "n_emitted": "int64",  # by the round
    "us": "float64",
    "plain_us": "float64",  # median of the plain rounds just before and just behind
}


def draft_text(draft: Drafting) -> str:
    """A drafter as JSON on one line."""
    return json.dumps(as_dict(Config(draft=draft))["draft"], sort_keys=True)


def draft_of(text: str) -> Drafting:
    """The inverse of `draft_text`."""
    return from_dict({"draft": json.loads(text)}).draft


def begin(
    folder: Path,
    found: dict,
    plan: dict,
    weights: dict[str, str],
    tokenizers: dict[str, str],
) -> pd.DataFrame:
    """Make a folder ready for measuring and note that a session begins.

    Args:
        found: the conditions now; `SAME_CONDITIONS` where they are known.
        plan: what is asked for; `SAME_PLAN` must be among it.
        weights: a fingerprint per group, by its target and draft.
        tokenizers: `text.tokenizer_id` per target.

    Returns:
        the rows that `folder` holds already.

    Raises:
        ValueError: the folder is damaged, or was measured under other conditions, with other
            prompts or with other weights.
    """
    plan = json.loads(json.dumps(plan))  # tuples become what a file gives back
    table = _nothing()
    head = {"schema": SCHEMA_VERSION, "kind": "measured", "conditions": found}
    if (folder / "stages.json").exists():
        head, table = read_stages(folder)
        for name in SAME_CONDITIONS:
            check_same(folder, name, head["conditions"].get(name), found.get(name))
        for name in SAME_PLAN:
            check_same(folder, name, head["plan"].get(name), plan[name])
        for group in sorted(set(head["weights"]) & set(weights)):
            check_same(folder, f"weights of {group}", head["weights"][group], weights[group])
    session = {name: found.get(name) for name in ("date", "commit", "load_average")}
    head |= {"plan": plan, "weights": head.get("weights", {}) | weights}
    head["tokenizers"] = head.get("tokenizers", {}) | tokenizers
    head["sessions"] = [*head.get("sessions", ()), session]
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(head, indent=1, allow_nan=False) + "\n"
    replace_file(folder / "stages.json", lambda path: path.write_text(text, encoding="utf-8"))
    return table


def write_stages(folder: Path, table: pd.DataFrame) -> None:
    """Replace the table; ValueError when a column is missing or foreign."""
    _check_columns("stages", table)
    table = table.astype(STAGES)
    replace_file(
        folder / "stages.parquet",
        lambda path: table.to_parquet(path, index=False, compression="zstd"),
    )


def read_stages(folder: Path | str) -> tuple[dict, pd.DataFrame]:
    """What `stages.json` says, and the table, without rows where no group is finished.

    Raises:
        ValueError: there are none, or a file is damaged, cut off or of another schema.
    """
    folder = Path(folder)
    head = read_head_file(folder / "stages.json", SCHEMA_VERSION, "measured stages")
    path = folder / "stages.parquet"
    if not path.exists():
        return head, _nothing()
    try:
        table = pd.read_parquet(path)
    except (OSError, ValueError, ArrowException) as error:
        raise ValueError(f"{path} is damaged or cut off: {error}") from None
    _check_columns(str(path), table)
    return head, table


def shipped_stages() -> tuple[dict, pd.DataFrame]:
    """What ships with the zoo, as `read_stages` gives it."""
    return read_stages(Path(str(resources.files("hspec_profiles") / "costs" / "zoo")))


def same_models(one: Drafting | None, other: Drafting | None) -> bool:
    """Whether two drafters differ in their sizes at most."""
    return _without_sizes(one) == _without_sizes(other)


def _without_sizes(draft):
    if isinstance(draft, Eagle2):
        return replace(draft, tree_size=1, depth=1)
    if isinstance(draft, Chain):
        return replace(draft, model="@".join(split_model(draft.model)), draft_len=1)
    if isinstance(draft, Refine):
        model, inner = "@".join(split_model(draft.model)), _without_sizes(draft.draft)
        return replace(draft, model=model, draft=inner, at_least=1)
    return draft


def _nothing() -> pd.DataFrame:
    return pd.DataFrame({name: pd.Series(dtype=kind) for name, kind in STAGES.items()})


def _check_columns(where: str, table: pd.DataFrame) -> None:
    if list(table.columns) != list(STAGES):
        raise ValueError(f"{where} has the columns {list(STAGES)}, got {list(table.columns)}")
