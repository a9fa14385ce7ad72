"""Random acceptance traces: invented content in the layout of `acceptance_folder`; no model.

What a model says is drawn; what a draft would hold comes from toy trees that grow as EAGLE-2's do
(the same frontier, the same order), so that ranks keep every rule a recorded one keeps: a node's
ancestor comes before it, a deeper pool only adds nodes, and behind a missing level all are missing.
Scores and margins are coarse, so ties occur.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from hspec_lab.acceptance_folder import (
    MAX_CHILD,
    TEXT,
    Trace,
    child_columns,
    head_of,
    rank_columns,
    states_columns,
)
from hspec_lab.config import MAX_TREE_SIZE, Chain, Config, Eagle2, Refine

MIDDLE = "zoo:intermediate@w4a16-g128"
CONDITIONS = {"date": "2026-01-01T00:00:00", "device": "cpu", "threads": 1}
_VOCABULARY = 50
_CHUNK = 4096


def random_trace(
    seed: int,
    *,
    kind: str = "eagle2",
    n_prompts: int = 3,
    n_positions: int | Sequence[int] = 40,
    depth: int = 4,
    top_k: int = 3,
    at_least: int = 5,
    agree: float = 0.7,
    hit: float = 0.7,
    narrow: int | None = None,
    temperature: float = 0.0,
) -> Trace:
    """A valid trace of invented content.

    Args:
        kind: "eagle2", "refine" or "chain" (whose `draft_len` is `at_least`).
        n_positions: tokens that count, of every prompt or of each; those below the largest ended
            early, as texts do.
        agree: how often the model below the target says what the target says.
        hit: how often the next token is the most probable child of its parent in a draft; it is
            the second most often in that share of the rest, and so on.
        narrow: `Refine.tree_size` of the recorded config.
    """
    rng = np.random.default_rng(seed)
    counts = [n_positions] * n_prompts if isinstance(n_positions, int) else list(n_positions)
    n_nodes = min(1 + top_k + (depth - 1) * top_k**2, MAX_TREE_SIZE)
    head = Eagle2(tree_size=n_nodes, depth=depth, top_k=top_k)
    draft, n_before = {
        "eagle2": (head, 1),
        "refine": (Refine(MIDDLE, head, at_least, sampling="greedy", tree_size=narrow), at_least),
        "chain": (Chain(MIDDLE, at_least), at_least),
    }[kind]
    depth = 0 if kind == "chain" else depth
    config = Config(draft=draft, max_new_tokens=max(counts), temperature=temperature)
    facts = {
        "conditions": CONDITIONS,
        "weights": "0" * 12,
        "tokenizer": "0" * 12,
        "prompts": [f"prompt {i}" for i in range(len(counts))],
        "eos_ids": [_VOCABULARY],
        "prompt_tokens": [7 + i for i in range(len(counts))],
        "n_positions": counts,
    }
    prompts = [
        _prompt(rng, kind, max(counts), n_before, depth, 1.0 if kind == "eagle2" else agree)
        for _ in counts
    ]
    text, states, asked = (
        pd.concat([parts[i].assign(prompt=p) for p, parts in enumerate(prompts)]) for i in range(3)
    )
    drafts = toy_drafts(rng, len(states), depth, top_k, hit)
    drafts[~asked["asked"].to_numpy()] = -1
    columns = child_columns(depth) + rank_columns(depth)
    states = pd.concat(
        [states.reset_index(drop=True), pd.DataFrame(drafts, columns=columns)], axis=1
    )
    kinds = states_columns(depth)
    return Trace(
        f"random {seed}",
        head_of(config, **facts) | {"schema": 1, "kind": "recorded"},
        text[list(TEXT)].astype(TEXT).reset_index(drop=True),
        states[list(kinds)].astype(kinds),
    )


def _prompt(rng, kind: str, n: int, n_before: int, depth: int, agree: float) -> tuple:
    """One prompt's text, its states without drafts, and at which of them the head is asked."""
    n_text = n + n_before + depth - 1
    tokens = rng.integers(0, _VOCABULARY, n_text)
    gaps = rng.integers(1, 9, n_text) / 4
    text = pd.DataFrame({"position": range(n_text), "token": tokens, "gap": gaps})
    truth = tokens[1:]
    n_states = n_text - 1
    said = np.where(rng.random(n_states) < agree, truth, (truth + 1) % _VOCABULARY)
    parts = [(np.arange(n_states), np.zeros(n_states, dtype=int), said)]
    if kind == "refine":
        places = np.arange(1, n_before + depth)
        for miss in np.flatnonzero(said != truth):
            own = rng.integers(0, _VOCABULARY, len(places))
            parts.append((np.full(len(places), miss), places, own))
    position, branch, token = map(np.concatenate, zip(*parts, strict=True))
    second = (token + rng.integers(1, 3, len(token))) % _VOCABULARY
    # where the model is wrong, its second choice is right now and then
    missed = np.flatnonzero((branch == 0) & (token != truth[np.minimum(position, n_states - 1)]))
    rescued = missed[rng.random(len(missed)) < 0.5]
    second[rescued] = truth[position[rescued]]
    margin = rng.integers(1, 9, len(token)) / 4
    if kind == "eagle2":
        second, margin = np.full(len(token), -1), np.zeros(len(token))
    states = {"position": position, "branch": branch, "token": token}
    asked = (position <= n + n_before - 3) & (branch < n_before)
    return (
        text,
        pd.DataFrame(states | {"second": second, "margin": margin}),
        pd.DataFrame({"asked": asked}),
    )


def toy_drafts(rng, n: int, depth: int, top_k: int, hit: float) -> np.ndarray:
    """What `n` random drafts hold of the text ahead.

    Returns:
        int16 [n, columns], `child_l`, then `rank_d_l` in the order of `rank_columns`.
    """
    if depth == 0:
        return np.zeros((n, 0), dtype=np.int16)
    chunks = [
        _toy_chunk(rng, min(_CHUNK, n - start), depth, top_k, hit) for start in range(0, n, _CHUNK)
    ]
    return np.concatenate(chunks)


def _toy_chunk(rng, n: int, depth: int, top_k: int, hit: float) -> np.ndarray:
    places = rng.geometric(hit, (n, depth)) - 1
    places[np.logical_or.accumulate(places >= MAX_CHILD, axis=1)] = -1
    rows, k = np.arange(n), top_k
    levels: list[np.ndarray] = []  # scores [n, k], then [n, k * k] of each level
    path = np.full((n, depth), -1)  # history numbers of the nodes on the text ahead
    frontier_scores, slot, start = np.zeros((n, 1)), np.zeros(n, dtype=int), 0
    for level in range(depth):
        # eighths, at most 0: ties within and across levels
        values = -np.sort(rng.integers(0, 25, (n, frontier_scores.shape[1], k)) / 8, axis=2)
        scores = (frontier_scores[:, :, None] + values).reshape(n, -1)
        there = (slot >= 0) & (places[:, level] >= 0) & (places[:, level] < k)
        inside = slot * k + places[:, level]
        path[there, level] = start + inside[there]
        levels.append(scores)
        start += scores.shape[1]
        chosen = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        frontier_scores = scores[rows[:, None], chosen]
        found = (chosen == inside[:, None]) & there[:, None]
        slot = np.where(found.any(axis=1), found.argmax(axis=1), -1)
    ranks = _ranks(np.concatenate(levels, axis=1), path, depth, k)
    return np.concatenate([places, ranks], axis=1).astype(np.int16)


def _ranks(scores: np.ndarray, path: np.ndarray, depth: int, k: int) -> np.ndarray:
    """Nodes before each of the path's in the pool of each depth limit, [n, columns]."""
    order = [
        np.argsort(np.argsort(-scores[:, : k + (d - 1) * k * k], axis=1, kind="stable"), axis=1)
        for d in range(1, depth + 1)
    ]
    found = [
        np.where(path[:, level] >= 0, place[np.arange(len(path)), path[:, level]], -1)
        for d, place in enumerate(order, 1)
        for level in range(d)
    ]
    return np.stack(found, axis=1)
