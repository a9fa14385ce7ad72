"""Accepted lengths for models with made-up weights: from a recorded run, or as published.

Needs no torch.  What is timed with them is real, how many tokens a round emits is not: every number
made so says where its lengths come from.
"""

import json
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from hspec_lab.store import read_run

# a verification of so few tokens is a catch-up: nothing was drafted
_CATCH_UP = 2


@dataclass(frozen=True, slots=True)
class Accepted:
    """Emitted tokens of every round, in order.

    Attributes:
        source: where they come from, as figures say it.
        target: of the target's rounds; one longer than a draft means all of it, and the bonus.
        intermediate: of the intermediate model's; empty where there is none.
    """

    source: str
    target: list[int]
    intermediate: list[int]


def of_run(folder: Path) -> Accepted:
    """The lengths of a recorded run, warm-up left out.

    Raises:
        ValueError: no run, or one without rounds.
    """
    head, tables = read_run(folder)
    rounds, spans = tables["rounds"], tables["spans"]
    target = rounds.loc[~rounds["warmup"], "n_emitted"].tolist()
    if not target:
        raise ValueError(f"{folder}: the run has no rounds to replay")
    inner = spans[(spans["level"] == "intermediate") & ~spans["warmup"] & (spans["round"] >= 0)]
    verified = inner.loc[inner["phase"] == "verify_intermediate", "n_tokens"].tolist()
    committed = inner.loc[inner["phase"] == "kv_commit", "n_tokens"].tolist()
    drafted = [n for rows, n in zip(verified, committed, strict=False) if rows > _CATCH_UP]
    source = f"replayed from {head['method']} run {Path(folder).name}"
    return Accepted(source, target, drafted)


def of_zoo(method: str) -> Accepted:
    """The lengths of the zoo run that ships for a method."""
    return of_run(Path(str(resources.files("hspec_profiles") / "runs" / "zoo" / method)))


def published(method: str) -> Accepted:
    """Lengths with the means that the paper's runs are estimated to have had.

    Raises:
        ValueError: nothing is known of the method.
    """
    path = Path(str(resources.files("hspec_profiles") / "acceptance" / "published.json"))
    known = json.loads(path.read_text())["methods"]
    if method not in known:
        raise ValueError(f"nothing published for {method}; there is {', '.join(known)}")
    found = known[method]
    return Accepted("replayed from estimated lengths", found["target"], found["intermediate"])
