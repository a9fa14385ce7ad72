"""Where the nodes of a proposal stand, and what became of each.

The root stands left; a node's first child continues its row and every further one opens a row
below.  The accepted path comes first, with the verifying model's own token at its end, so the top
row reads as the text that this step emitted.  Everything else hangs below it.

cost: O(n log n) for n nodes, the sorting of siblings.
"""

from collections import defaultdict
from dataclasses import dataclass

import pandas as pd

from hspec_lab.config import below

# states, in the order of the legend
PENDING, ACCEPTED, OWN = "pending token", "accepted", "the model's own"
REFUSED, REST = "refused", "not accepted"
# px: between rows, at most and at least; all rows together
PITCH, _LEAST_PITCH, TALLEST = 58, 1.0, 560


@dataclass
class Placed:
    """Nodes of one proposal, the model's own token behind them, and where each one stands."""

    nodes: list[dict]
    parents: list[int]
    states: list[str]
    columns: list[int]
    y: list[float]  # px below the root
    level: str
    drafter: str


def placed(nodes: pd.DataFrame, height: float) -> Placed:
    """Give every node its state and its place, and add the model's own token."""
    level = nodes.iloc[0]["level"]
    columns = {name: nodes[name].tolist() for name in nodes}
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    parents, accepted = nodes["parent"].tolist(), nodes["accepted"].tolist()
    last = int(nodes["depth"].where(nodes["accepted"], -1).to_numpy().argmax())
    states = [PENDING] + [ACCEPTED if kept else REST for kept in accepted[1:]]
    children = defaultdict(list)
    for node, parent in enumerate(parents[1:], 1):
        children[parent].append(node)
    for found in children.values():
        found.sort(key=lambda node: (not accepted[node], rows[node]["rank"], node))
    if children[last]:
        states[children[last][0]] = REFUSED
    own = {
        "piece": rows[last]["choice_piece"],
        "source": level,
        "depth": rows[last]["depth"] + 1,
        "p_draft": rows[last]["choice_p_draft"],
        "p_model": rows[last]["choice_p"],
    }
    children[last].insert(0, len(rows))
    y = _heights(_rows_of(children, len(rows) + 1), height)
    rows.append(own | {"rank": -1, "model_rank": -1})
    columns = [row["depth"] for row in rows]
    return Placed(rows, [*parents, last], [*states, OWN], columns, y, level, drafter_of(nodes))


def drafter_of(nodes: pd.DataFrame) -> str:
    """The level whose probabilities `p_draft` are; "" where nothing was drafted."""
    model = below(nodes.iloc[0]["level"])
    sources = set(nodes["source"]) - {""}
    return model if model in sources else "head" if sources else ""


def height_of(nodes: pd.DataFrame) -> int:
    """How many px the rows of a proposal take when each has room, up to a screen's."""
    return int(min(max(placed(nodes, TALLEST).y), TALLEST))


def _rows_of(children: dict[int, list[int]], n: int) -> list[int]:
    """Row of each node: a first child's is its parent's, any other's a new one."""
    rows, n_rows, left = [-1] * n, 0, [0]
    rows[0] = 0
    while left:
        node = left.pop()
        if rows[node] < 0:
            n_rows += 1
            rows[node] = n_rows
        found = children.get(node)
        if found:
            rows[found[0]] = rows[node]
            left += found[::-1]
    return rows


def _heights(rows: list[int], height: float) -> list[float]:
    """Px of each row; the first keeps room for the numbers below it, however close the others."""
    n = max(max(rows), 1)
    pitch = max(min(PITCH, height / n), _LEAST_PITCH)
    more = 0.5 * (PITCH - pitch)
    pitch = max(min(PITCH, (height - more) / n), _LEAST_PITCH)
    return [row * pitch + (more if row else 0) for row in rows]
