"""Compare replayed rounds with decoded ones; where they differ, how near the decision was."""

from dataclasses import replace

import numpy as np

from hspec_lab import record as recording
from hspec_lab.acceptance import replay
from hspec_lab.config import head_draft
from hspec_lab.experiment import Session

COUNTS = ["round", "kv_len", "n_proposed", "n_accepted", "n_emitted"]
SMALLEST_GAP = 1e-4
MOST_IN_10_000 = 1


def differing_rounds(trace, draft, models, prompts=None, max_new_tokens=None):
    """Decode prompts of a trace with a drafter and compare.

    Behind a round that differs the two tell of different places, so a prompt counts once.

    Returns:
        how many rounds were compared, and for each prompt that differs its deciding gap: in
        logits or log-probabilities, the smallest among what that round decided.
    """
    n_tokens = max_new_tokens or trace.config.max_new_tokens
    session = Session(replace(trace.config, draft=draft, max_new_tokens=n_tokens), models)
    prompts = range(len(session.prompts)) if prompts is None else sorted(set(prompts))
    for index in prompts:
        for _ in session.rounds_of(index):
            pass
    rounds, told = session.recorder.tables()["rounds"], replay(trace, draft, n_tokens)
    n_compared, gaps = 0, []
    for index in prompts:
        found, wanted = (
            table.loc[table["prompt"] == index, COUNTS].to_numpy() for table in (rounds, told)
        )
        n = min(len(found), len(wanted))
        same = (found[:n] == wanted[:n]).all(axis=1)
        if same.all() and len(found) == len(wanted):
            n_compared += n
            continue
        at = int(np.argmin(same)) if not same.all() else n - 1
        n_compared += at + 1
        position = int(wanted[at][1]) - trace.head["prompt_tokens"][index]
        gaps.append(deciding_gap(trace, draft, index, position, wanted[at]))
    return n_compared, gaps


def deciding_gap(trace, draft, index, position, counts) -> float:
    """The smallest gap that a round starting at `position` of prompt `index` turned on."""
    last = position + int(counts[2]) + 2
    text, states = (
        table[(table["prompt"] == index) & table["position"].between(position, last)]
        for table in (trace.text, trace.states)
    )
    gaps = [text.loc[text["position"] > position, "gap"].min()]
    if (trace.states["margin"] > 0).any():
        gaps.append(states["margin"].min())
    head = head_draft(draft)
    if head is not None:
        asked = asked_gaps(trace, index, head)
        near = (trace.states["prompt"] == index).to_numpy()
        places = trace.states.loc[near, "position"].to_numpy()[: len(asked)]
        gaps += [gap for place, gap in zip(places, asked, strict=False) if position <= place]
    return float(np.nanmin(gaps))


def asked_gaps(trace, index, head) -> list[float]:
    """Per state at which the head was asked: how far the text's nodes lie from the border.

    The border is the last node that a tree of the given size keeps, and the first it does not.
    """
    config, found = trace.config, []
    original = recording._asked

    def asked(drafter, ahead):
        tokens, scores, parents = drafter.grow()
        k = drafter.top_k
        pool = scores[: k + (head.depth - 1) * k * k]
        order = np.argsort(-pool, kind="stable")
        kept = min(head.tree_size - 1, len(pool))
        border = pool[order[max(kept - 1, 0) : kept + 1]]
        gap, parent = np.inf, -1
        for token in ahead[: head.depth]:
            here = np.flatnonzero((parents == parent) & (tokens == token))
            if not len(here) or here[0] >= len(pool):
                break
            parent = int(here[0])
            others = border[border != pool[parent]]
            gap = min(gap, *np.abs(others - pool[parent]), np.inf)
        found.append(float(gap))
        return original(drafter, ahead)

    recording._asked = asked
    try:
        ids = recording.tokenizer_of(config).encode(trace.head["prompts"][index]).ids
        longer = replace(config, max_new_tokens=recording._n_text(config))
        recorder = recording._Recorder(longer, len(ids))
        recorder.of_prompt(index, ids, config, None, 1, "")
    finally:
        recording._asked = original
    return found
