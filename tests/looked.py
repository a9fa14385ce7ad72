"""Trees as if somebody had looked at them: invented nodes, hand-made and large."""

import numpy as np
import pandas as pd

from hspec_lab.trees_folder import NODES, Trees

# piece, parent, p_draft, rank, p_model, model_rank, accepted
TREE = [
    ("root", -1, np.nan, -1, np.nan, -1, True),
    ("a", 0, 0.5, 0, 0.1, 1, False),
    ("b", 0, 0.3, 1, 0.8, 0, True),
    ("d", 2, 0.4, 0, 0.9, 0, True),
    ("e", 3, 0.6, 0, 0.2, 1, False),
    ("f", 3, 0.2, 1, 0.05, 2, False),
]
CHAIN = [
    ("root", -1, np.nan, -1, np.nan, -1, True),
    ("x", 0, 0.9, 0, 0.8, 0, True),
    ("y", 1, 0.5, 0, 0.3, 1, False),
]


def nodes_of(rows, level="target", round=0, step=0, prompt=0) -> pd.DataFrame:
    """The nodes of one proposal; a head's `TREE`, or an intermediate model's `CHAIN`."""
    names = ["piece", "parent", "p_draft", "rank", "p_model", "model_rank", "accepted"]
    table = pd.DataFrame(rows, columns=names)
    depths = [0]
    for parent in table["parent"][1:]:
        depths.append(depths[parent] + 1)
    sources = ["", *("head" for _ in rows[1:])]
    if rows is CHAIN:
        sources[-1] = "intermediate"
    table = table.assign(prompt=prompt, round=round, level=level, step=step, depth=depths)
    table = table.assign(node=range(len(table)), token=range(len(table)), source=sources)
    own = {"choice": 9, "choice_piece": "own", "choice_p": 0.7, "choice_p_draft": 0.1}
    return table.assign(**own)[list(NODES)].astype(NODES)


def big_tree(n: int, **where) -> pd.DataFrame:
    """A tree of n nodes: eight children each, level by level, the first path accepted."""
    rows = [TREE[0]]
    on_path = 0
    for node in range(1, n):
        parent = (node - 1) // 8
        kept = parent == on_path and (node - 1) % 8 == 0 and node < 70
        on_path = node if kept else on_path
        rows.append((f" token{node}", parent, 0.1, (node - 1) % 8, 0.1, 3, kept))
    return nodes_of(rows, **where)


def trees_of(*parts: pd.DataFrame) -> Trees:
    """A decode of one prompt that consists of these proposals."""
    nodes = pd.concat(parts, ignore_index=True)
    rounds = [at for at in nodes["round"].unique() for _ in range(2)]
    tokens = pd.DataFrame({"round": rounds, "piece": "ab", "source": "head", "token": 1})
    tokens = tokens.assign(prompt=0, position=range(len(tokens)))
    head = {
        "schema": 1,
        "kind": "looked",
        "format": "fp32",
        "conditions": {"device": "cpu", "threads": 2, "date": "2026-11-21T00:00:00"},
        "prompts": {"0": "begin"},
        "outputs": {"0": "ab" * len(rounds)},
    }
    return Trees(head, nodes, tokens)
