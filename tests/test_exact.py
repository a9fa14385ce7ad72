"""The shipped models, every prompt: drafted greedy text is the target's own."""

import pytest

from hspec_lab import zoo
from hspec_lab.audit import audit
from hspec_lab.config import Chain, Config, Eagle2, Refine
from hspec_lab.experiment import Session
from hspec_lab.pipeline import Models

N_PROMPTS = len(zoo.prompts())
MIDDLE = "zoo:intermediate@w8a8"
DRAFTS = {
    "chain": Chain(MIDDLE, draft_len=6),
    "eagle2": Eagle2(tree_size=24, depth=4, top_k=8),
    "hierspec": Refine(MIDDLE, Eagle2(tree_size=24, depth=4, top_k=8), at_least=6),
}
METHODS = pytest.mark.parametrize("method", DRAFTS)


@pytest.fixture(scope="module")
def models():
    return Models()


def decoded(models, target, draft=None, row_invariant=False):
    config = Config(
        target=target,
        draft=draft,
        n_prompts=N_PROMPTS,
        max_new_tokens=64,
        row_invariant=row_invariant,
    )
    session = Session(config, models)
    for index in range(N_PROMPTS):
        for _ in session.rounds_of(index):
            pass
    return session


@pytest.fixture(scope="module")
def plain_fp32(models):
    return decoded(models, "zoo:target@fp32")


@pytest.fixture(scope="module")
def plain_w8a8(models):
    return decoded(models, "zoo:target@w8a8", row_invariant=True)


@pytest.mark.slow
@METHODS
def test_every_prompt_at_fp32_differs_nowhere_but_within_rounding(method, models, plain_fp32):
    drafted = decoded(models, "zoo:target@fp32", DRAFTS[method])
    found = []
    for index in range(N_PROMPTS):
        ids = plain_fp32.output_ids(index), drafted.output_ids(index)
        found.append(audit(plain_fp32.verifier.model, plain_fp32.prompt_ids[index], *ids))
    differing = [entry for entry in found if entry is not None]
    assert all(entry["verdict"] == "rounding" for entry in differing), differing
    # two fp32 logits rarely lie within rounding of each other
    assert len(differing) <= 1, differing


@pytest.mark.slow
@METHODS
def test_every_prompt_at_w8a8_is_equal_in_row_invariant_mode(method, models, plain_w8a8):
    drafted = decoded(models, "zoo:target@w8a8", DRAFTS[method], row_invariant=True)
    for index in range(N_PROMPTS):
        assert drafted.output_ids(index) == plain_w8a8.output_ids(index)
