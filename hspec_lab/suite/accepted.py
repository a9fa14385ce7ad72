"""Accepted lengths for models with made-up weights: from a recorded run, or as published.

Needs no torch.  What is timed with them is real, how many tokens a round emits is not: every number
made so says where its lengths come from.
"""

import json
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import pandas as pd

from hspec_lab.store import read_run

# a verification of so many tokens is a catch-up: nothing was drafted
CATCH_UP = 2


@dataclass(frozen=True, slots=True)
class Accepted:
    """Emitted tokens of every round, in order.

    Attributes:
        source: where they come from, as figures say it.
        target: of the target's rounds; one longer than a draft means all of it, and the bonus,
            a negative one that a narrow tree's rival was the last kept token.
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
    rounds = rounds[~rounds["warmup"]]
    if not len(rounds):
        raise ValueError(f"{folder}: the run has no rounds to replay")
    source = f"replayed from {head['method']} run {Path(folder).name}"
    inner = spans[(spans["level"] == "intermediate") & ~spans["warmup"] & (spans["round"] >= 0)]
    if not (inner["phase"] == "verify_intermediate").any():
        return Accepted(source, rounds["n_emitted"].tolist(), [])
    target, intermediate = [], []
    for _, prompt in rounds.groupby("prompt", sort=False):
        own = inner[inner["prompt"] == prompt["prompt"].iloc[0]]
        lengths, drafted = _of_hierarchy(prompt, own)
        target += lengths
        intermediate += drafted
    return Accepted(source, target, intermediate)


def _of_hierarchy(rounds: pd.DataFrame, spans: pd.DataFrame) -> tuple[list[int], list[int]]:
    """One prompt's lengths; a target's round that ended with a rival is negative.

    The intermediate model catches up on two tokens after a round that kept its whole draft, or
    whose last kept token was none of its first choices.
    """
    verified = spans[spans["phase"] == "verify_intermediate"].groupby("round")["n_tokens"]
    committed = spans[spans["phase"] == "kv_commit"].groupby("round")["n_tokens"]
    rows = {n: found.tolist() for n, found in verified}
    kept = {n: found.tolist() for n, found in committed}
    lengths, drafted, first = [], [], 1  # one token is drafted with the prompt
    for number, n_emitted in zip(rounds["round"], rounds["n_emitted"], strict=True):
        inner = list(zip(rows.get(number, []), kept.get(number, []), strict=True))
        drafts = [n for width, n in inner if width > CATCH_UP]
        n_drafted = first + len(inner) - len(drafts) + sum(drafts)
        follows = rows.get(number + 1, [0])
        rival = follows[0] == CATCH_UP and n_emitted <= n_drafted
        lengths.append(-n_emitted if rival else n_emitted)
        drafted += drafts
        first = 0
    return lengths, drafted


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
