"""Look into a decode: every node that was drafted, what both models thought of it, what was kept.

    trees = look(config, max_new_tokens=48)
    trees.nodes, trees.disagreements(), trees.write("looked")

A verifying level tells its looker of every step; by default it has none.  The looker reads the
logits that are there already, and asks a draft head for its probabilities by running it again, so
looking disturbs times and nothing else: the text is bitwise the one that nobody looked at.  What
was looked at is therefore never stored as a measured run.

cost: a softmax over the vocabulary per row verified, and a second run of the head per tree.
"""

from collections import Counter
from functools import cache

import numpy as np
import pandas as pd
import torch
from tokenizers import Tokenizer
from torch import Tensor

from hspec_lab.accept import Proposal, Verdict
from hspec_lab.config import Config, as_dict
from hspec_lab.draft import Eagle2Drafter, RefineDrafter
from hspec_lab.draft.static import StaticDrafter
from hspec_lab.experiment import Session, conditions
from hspec_lab.pipeline import Models
from hspec_lab.sample import distribution
from hspec_lab.store import TABLES
from hspec_lab.tree import Tree
from hspec_lab.trees_folder import NODES, SCHEMA_VERSION, Trees
from hspec_lab.verify import Verifier


def look(
    config: Config,
    prompt: int = 0,
    max_new_tokens: int | None = None,
    models: Models | None = None,
) -> Trees:
    """Decode one prompt and keep every tree.

    Args:
        prompt: its number among the config's.
        max_new_tokens: the config's when None.
        models: share one and each model is loaded once.

    Raises:
        ValueError: rounds stay on the device, the config is wrong, or it has no such prompt.
    """
    if (models or Models()).on_kernels(config.device):
        raise ValueError(
            f"look: rounds on {config.device!r} stay in device memory and cannot be looked at; "
            "use device='cpu'"
        )
    # without a recorder nothing can be stored as a run
    session = Session(config, models, record=False, nvtx=False)
    if not 0 <= prompt < len(session.prompts):
        raise ValueError(f"look: prompt is 0..{len(session.prompts) - 1}, got {prompt}")
    found = _Found(prompt, _pieces(session.tokenizer))
    _attach(session.verifier, found)
    rounds = list(session.rounds_of(prompt, max_new_tokens=max_new_tokens))
    head = {
        "schema": SCHEMA_VERSION,
        "kind": "looked",
        "config": as_dict(config),
        "method": config.method,
        "format": config.format,
        "conditions": conditions(config.device, config.threads),
        "prompts": {str(prompt): session.prompts[prompt]},
        "outputs": {str(prompt): session.output(prompt)},
    }
    return Trees(head, found.table(), _tokens(prompt, rounds))


class _Found:
    """Rows of nodes, and where in the decode they come from."""

    def __init__(self, prompt: int, piece):
        self.prompt, self.piece = prompt, piece
        self.round, self.steps = -1, Counter()
        self._parts: list[pd.DataFrame] = []

    def add(self, level: str, columns: dict) -> None:
        """Take one step of a level; the target's ends a round."""
        part = pd.DataFrame(columns)
        where = {"prompt": self.prompt, "round": self.round, "level": level}
        part = part.assign(**where, step=self.steps[level])
        part["piece"] = [self.piece(token) for token in part["token"]]
        part["choice_piece"] = [self.piece(token) for token in part["choice"]]
        self._parts.append(part[list(NODES)].astype(NODES))
        self.steps[level] += 1
        if level == "target":
            self.round += 1
            self.steps.clear()

    def table(self) -> pd.DataFrame:
        """Every node, in the order of decoding."""
        return pd.concat(self._parts, ignore_index=True)


class _Looker:
    """Is told of every step of one level.

    Args:
        below: the looker of the model that drafts for this level; None where no model does.
    """

    def __init__(self, verifier: Verifier, found: _Found, below: "_Looker | None"):
        self.verifier, self.found, self.below = verifier, found, below
        self.temperature = (verifier.temperature if verifier.sampling else 0) or 1.0
        self.rows: list[Tensor] = []  # distributions behind this level's tokens, for the one above

    def __call__(self, proposal: Proposal, logits: Tensor, verdict: Verdict) -> None:
        """Read a step: what was offered, logits fp32 [n, V] behind its nodes, what was kept."""
        p = distribution(logits, self.temperature).cpu()
        tokens = [self.verifier.tokens[-1], *proposal.tree.tokens[1:]]
        tree = Tree(tokens, proposal.tree.parents, proposal.tree.depths)
        choice = p.argmax(dim=-1).numpy()
        choice[verdict.path] = verdict.tokens
        columns = {"node": range(len(tree)), "parent": tree.parents, "depth": tree.depths}
        columns |= {"token": tokens} | _placed(tree, p, "p_model", "model_rank")
        columns |= self._drafted(tree, choice)
        accepted = np.isin(np.arange(len(tree)), verdict.path)
        columns |= {"source": ["", *proposal.sources[1:]], "accepted": accepted, "choice": choice}
        columns["choice_p"] = p.numpy()[np.arange(len(tree)), choice]
        self.found.add(self.verifier.level, columns)
        self.rows.append(p[verdict.path])

    def _drafted(self, tree: Tree, choice: np.ndarray) -> dict:
        """What the drafter thought of the nodes, and of what the model said behind them."""
        nothing = np.full(len(tree), np.nan)
        columns = {"p_draft": nothing, "rank": np.full(len(tree), -1), "choice_p_draft": nothing}
        drafter = self.verifier.drafter
        if isinstance(drafter, RefineDrafter):
            if len(tree) > 1:
                # its draft is the last so many tokens of the level below
                rows = torch.cat(self.below.rows)[-max(tree.depths) :]
                columns |= _placed(tree, rows, "p_draft", "rank")
                n = min(len(rows), len(tree))
                columns["choice_p_draft"] = nothing.copy()
                columns["choice_p_draft"][:n] = rows.numpy()[np.arange(n), choice[:n]]
            self.below.rows.clear()
        elif len(tree) > 1 and isinstance(drafter, Eagle2Drafter):
            read = _static if isinstance(drafter, StaticDrafter) else _grown
            p, rank, known = read(drafter, tree)
            said = [known.get((node, int(token)), np.nan) for node, token in enumerate(choice)]
            columns |= {"p_draft": p, "rank": rank, "choice_p_draft": said}
        return columns


def _placed(tree: Tree, p: Tensor, name: str, rank: str) -> dict:
    """Probability and place of each node's token in the row of its parent, fp32 [.., V]."""
    parents, tokens = torch.tensor(tree.parents[1:]), torch.tensor(tree.tokens[1:])
    rows = p[parents] if len(parents) else p[:0]
    found = rows.gather(1, tokens[:, None].long())
    places = (rows > found).sum(dim=1)
    return {
        name: np.concatenate([[np.nan], found[:, 0].double().numpy()]),
        rank: np.concatenate([[-1], places.numpy()]),
    }


def _grown(drafter: Eagle2Drafter, tree: Tree) -> tuple[np.ndarray, np.ndarray, dict]:
    """Conditional probabilities and ranks [n] of a dynamic tree, and all that the head scored.

    Returns:
        the third: probability by (node, token) of every child that was scored below a node.
    """
    tokens, scores, parents = drafter.grow()
    above = np.where(parents < 0, 0.0, scores[parents])
    p = np.exp(scores - above)
    # children are scored best first, as many below each node
    k = int((parents < 0).sum())
    kept = drafter.kept(scores)
    number = {-1: 0} | {int(history): node for node, history in enumerate(kept, 1)}
    known = {
        (number[int(parent)], int(token)): float(chance)
        for token, parent, chance in zip(tokens, parents, p, strict=True)
        if int(parent) in number
    }
    return np.concatenate([[np.nan], p[kept]]), np.concatenate([[-1], kept % k]), known


def _static(drafter: StaticDrafter, tree: Tree) -> tuple[np.ndarray, np.ndarray, dict]:
    """As `_grown`, of a static tree; the head scored nothing but the nodes."""
    log_p = np.full(len(tree), np.nan, dtype=np.float32)
    drafter.filled(log_p)
    p = np.exp(log_p)
    pairs = zip(tree.parents[1:], tree.tokens[1:], p[1:].tolist(), strict=True)
    known = {(parent, token): chance for parent, token, chance in pairs}
    return p, np.array([-1, *drafter.draft.places[1:]]), known


def _attach(verifier: Verifier, found: _Found) -> _Looker:
    """Give a level and all below it a looker."""
    drafter, below = verifier.drafter, None
    if isinstance(drafter, RefineDrafter):
        below = _attach(drafter.verifier, found)
    verifier.looker = _Looker(verifier, found, below)
    return verifier.looker


def _pieces(tokenizer: Tokenizer):
    """A token's own text, the space before it included; its name where it is no whole text."""

    @cache
    def piece(token: int) -> str:
        once, twice = tokenizer.decode([token]), tokenizer.decode([token, token])
        text = twice[len(once) :]
        return text if text and "\ufffd" not in text else tokenizer.id_to_token(token) or ""

    return piece


def _tokens(prompt: int, rounds: list) -> pd.DataFrame:
    """The output, one row per token."""
    rows = [
        (item.index, *entry)
        for item in rounds
        for entry in zip(item.tokens, item.pieces, item.sources, strict=True)
    ]
    table = pd.DataFrame(rows, columns=["round", "token", "piece", "source"])
    table = table.assign(prompt=prompt, position=range(len(table)))
    return table[list(TABLES["tokens"])].astype(TABLES["tokens"])
