"""The shipped models, every prompt: replay gives the rounds of decoding, one by one.

A round may differ only where two scores or logits lie closer than 1e-4: a pass over a tree adds its
numbers up in another order than a pass over one token.  At 4 bits rows are rounded to 16 bits, so
such a difference may become a hundred times larger; there the row-invariant mode is compared.
`benchmarks/exactness.py` does the same for 200 settings on every prompt.
"""

import random
from dataclasses import replace

import numpy as np
import pytest
from compared_rounds import MOST_IN_10_000, SMALLEST_GAP, differing_rounds

from hspec_lab import zoo
from hspec_lab.config import Chain, Config, Eagle2, Refine
from hspec_lab.pipeline import Models
from hspec_lab.record import record

MIDDLE = "zoo:intermediate@w4a16-g128"
HEAD = Eagle2(tree_size=64, depth=6, top_k=8)
LARGEST = {"eagle2": HEAD, "refine": Refine(MIDDLE, HEAD, at_least=8)}
METHODS = {
    "ar": ("eagle2", None),
    "chain": ("refine", Chain(MIDDLE, 6)),
    "eagle2": ("eagle2", Eagle2(24, 4, 8)),
    "hierspec": ("refine", Refine(MIDDLE, Eagle2(24, 4, 8), at_least=6)),
    "narrow tree": ("refine", Refine(MIDDLE, Eagle2(24, 3, 8), at_least=6, tree_size=16)),
}


@pytest.fixture(scope="module")
def models():
    return Models()


@pytest.fixture(scope="module")
def traces(tmp_path_factory):
    root = tmp_path_factory.mktemp("traces")
    config = Config(n_prompts=len(zoo.prompts()), max_new_tokens=40, threads=1)
    config = {kind: replace(config, draft=draft) for kind, draft in LARGEST.items()}
    config["refine"] = replace(config["refine"], row_invariant=True)
    return {kind: record(config[kind], root / kind) for kind in LARGEST}


def any_draft(draw):
    head = Eagle2(draw.randint(1, 64), draw.randint(1, 6), 8)
    length = draw.randint(1, 8)
    return draw.choice([
        ("eagle2", head),
        ("refine", Chain(MIDDLE, length)),
        ("refine", Refine(MIDDLE, head, length)),
        ("refine", Refine(MIDDLE, head, length, tree_size=draw.randint(2, 24))),
    ])  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_every_prompt_has_the_rounds_that_replay_says(method, models, traces):
    kind, draft = METHODS[method]
    n_rounds, gaps = differing_rounds(traces[kind], draft, models)
    assert n_rounds > 200
    assert len(gaps) <= 1 and all(gap < SMALLEST_GAP for gap in gaps), gaps


@pytest.mark.slow
def test_two_hundred_random_settings_have_the_rounds_that_replay_says(models, traces):
    draw, n_rounds, gaps = random.Random(0), 0, []
    for number in range(200):
        kind, draft = any_draft(draw)
        prompts = [number % len(zoo.prompts()), (7 * number + 3) % len(zoo.prompts())]
        n, found = differing_rounds(traces[kind], draft, models, prompts=prompts)
        n_rounds, gaps = n_rounds + n, gaps + found
    assert n_rounds > 3000
    assert all(gap < SMALLEST_GAP for gap in gaps), gaps
    assert len(gaps) <= max(1, np.ceil(n_rounds / 10_000 * MOST_IN_10_000))
