"""Record an acceptance trace: what a drafter would propose at every position of the target's text.

For greedy decoding the text does not depend on the drafter.  So the target writes it once, the
drafter is asked at every position, and `acceptance` answers for every tree size, depth and minimum
draft length by walking over what was written down.

A hierarchy is asked twice.  Its intermediate model is led along the target's text, and wherever it
would have gone on otherwise it is let go for as long as a draft may run, and led back; its head is
asked at every state that this makes.  Above temperature 0 its token is drawn together with the
target's: the text's token t is kept with probability min(1, q(t) / p(t)), another one comes from
what q has more than p; seen by itself, each follows q.

    cost  two one-row passes, and two drafts of the head, per position; for a hierarchy about as
          much again for every position at which the models disagree, times the draft length
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from hspec_lab.acceptance_folder import (
    MAX_CHILD,
    STATES,
    TEXT,
    Trace,
    begin_trace,
    head_of,
    rank_columns,
    read_trace,
    states_columns,
    write_trace,
)
from hspec_lab.config import Chain, Config, Eagle2, Refine, Static
from hspec_lab.draft import Eagle2Drafter
from hspec_lab.experiment import Progress, conditions, prompts_of
from hspec_lab.pipeline import (
    Models,
    build,
    check_folders,
    check_prompts,
    check_sources,
    fingerprint,
    levels,
    tokenizer_of,
)
from hspec_lab.quantize import make_missing
from hspec_lab.sample import SeededChoose, distribution
from hspec_lab.text import tokenizer_id
from hspec_lab.verify import Verifier

# a trace stores ranks in 16 bits
_MOST_NODES = 32000


def record(config: Config, folder: Path, progress: Progress | None = None) -> Trace:
    """Record what of a trace `folder` does not hold yet.

    Args:
        config: the largest sizes to be answered for: `depth`, `at_least` (or `draft_len`); every
            tree size follows from them.  Prompts, `max_new_tokens`, temperature, seed and
            `row_invariant` say whose text it is.
        folder: written anew after each prompt, so a stopped recording goes on where it was.
        progress: called with positions done, positions in all and a few words.

    Raises:
        ValueError: something about the config is wrong or cannot be replayed, or the folder holds
            something else.
    """
    _check(config)
    prompts, tokenizer = prompts_of(config), tokenizer_of(config)
    ids = [tokenizer.encode(prompt).ids for prompt in prompts]
    longer = replace(config, max_new_tokens=_n_text(config))
    check_prompts(longer, ids)
    make_missing(levels(config), progress)
    check_folders(config)
    torch.set_num_threads(config.threads)
    head = head_of(
        config,
        conditions=conditions(config.device, config.threads),
        weights=fingerprint(config),
        tokenizer=tokenizer_id(tokenizer),
        prompts=prompts,
    )
    found = begin_trace(Path(folder), head)
    text, states = [_empty(TEXT)], [_empty(states_columns(_sizes(config)[1]))]
    if found is not None:
        head, text, states = dict(found.head), [found.text], [found.states]
    recorder = None
    for index in range(len(head["n_positions"]), len(prompts)):
        recorder = recorder or _Recorder(longer, max(map(len, ids)))
        said = f"prompt {index + 1} of {len(prompts)}"
        tables = recorder.of_prompt(index, ids[index], config, progress, len(prompts), said)
        text.append(tables.text)
        states.append(tables.states)
        head["prompt_tokens"] = [*head["prompt_tokens"], len(ids[index])]
        head["n_positions"] = [*head["n_positions"], tables.n_positions]
        head["eos_ids"] = list(recorder.eos_ids)
        text, states = [pd.concat(text)], [pd.concat(states)]
        write_trace(Path(folder), head, text[0], states[0])
    return read_trace(Path(folder))


def _check(config: Config) -> None:
    draft = config.draft
    if isinstance(draft, Refine) and not isinstance(draft.draft, Eagle2):
        raise ValueError(
            f"a trace needs a draft head below the intermediate model, got {draft.draft!r}"
        )
    if isinstance(draft, Static):
        raise ValueError("a trace of Eagle2 answers for static trees too: record that")
    if draft is None:
        raise ValueError("plain decoding has nothing to record: give a drafter")
    if config.stop:
        raise ValueError("a trace records tokens: leave out the stop texts")
    head = draft.draft if isinstance(draft, Refine) else draft
    if isinstance(head, Eagle2) and head.top_k + head.depth * head.top_k**2 > _MOST_NODES:
        raise ValueError(f"a trace holds {_MOST_NODES} nodes a draft at most, got {head!r}")
    check_sources(config)


def _sizes(config: Config) -> tuple[int, int]:
    """The longest draft asked for before a model's last round, and the head's depth."""
    draft = config.draft
    if isinstance(draft, Chain):
        return draft.draft_len, 0
    if isinstance(draft, Refine):
        return draft.at_least, draft.draft.depth
    return 1, draft.depth


def _n_text(config: Config) -> int:
    """Tokens of text to be known so that the last round that counts is settled."""
    return config.max_new_tokens + sum(_sizes(config)) - 1


@dataclass(frozen=True)
class _Tables:
    text: pd.DataFrame
    states: pd.DataFrame
    n_positions: int


@dataclass(frozen=True)
class _Said:
    """What a model said behind a text.

    Attributes:
        token, second, margin: as in `acceptance_folder.STATES`.
        feature: fp32 [1, hidden], what led to it.
    """

    token: int
    second: int
    margin: float
    feature: Tensor


class _Recorder:
    """The levels of one config, asked prompt by prompt.

    Args:
        config: with as many tokens as the text needs.
    """

    def __init__(self, config: Config, n_prompt: int):
        self.config, self.choose = config, SeededChoose(config.seed)
        self.n_before, self.depth = _sizes(config)
        models = Models()
        # a draft may run on behind the end of the text
        room = replace(config, max_new_tokens=config.max_new_tokens + sum(_sizes(config)) + 2)
        made = {"choose": self.choose}
        self.plain = build(replace(room, draft=None), models, n_prompt, **made)
        self.plain.second_choices = True
        drafted = build(room, models, n_prompt, **made)
        self.eos_ids = drafted.model.shape.eos_ids
        self.below: Verifier | None = None
        self.head: Eagle2Drafter | None = drafted.drafter
        if not isinstance(config.draft, Eagle2):
            self.below = drafted.drafter.verifier
            self.head = self.below.drafter

    @torch.inference_mode()
    def of_prompt(self, index, ids, config, progress, n_prompts, said) -> _Tables:
        """Both tables of one prompt."""
        self.choose.begin(index)
        total = n_prompts * config.max_new_tokens
        tell = _Teller(progress, index, config.max_new_tokens, total, said)
        tokens, gaps, p_target = self._write_text(ids)
        ends = [place for place, token in enumerate(tokens) if token in self.eos_ids]
        n_positions = min([config.max_new_tokens, *(place + 1 for place in ends)])
        if self.below is None:
            states = self._of_target(ids, tokens, config.max_new_tokens, tell)
        else:
            states = self._of_below(ids, tokens, p_target, config.max_new_tokens, tell)
        text = pd.DataFrame(
            {"prompt": index, "position": range(len(tokens)), "token": tokens, "gap": gaps}
        )
        columns = states_columns(self.depth)
        states = pd.DataFrame([(index, *state) for state in states], columns=list(columns))
        return _Tables(text.astype(TEXT), states.astype(columns), n_positions)

    def _write_text(self, ids: list[int]):
        """The target's text, its gaps, and above temperature 0 the rows it was drawn from."""
        steps = [self.plain.start(ids)]
        while len(steps) < self.config.max_new_tokens:
            steps.append(self.plain.round())
        tokens = [step.tokens[0] for step in steps]
        gaps = [step.seconds[0].margin for step in steps]
        return tokens, gaps, [step.p_model for step in steps]

    def _of_target(self, ids, tokens, n_counted, tell) -> Iterator[tuple]:
        """States of the target's own head, which the true features serve."""
        features, head = self.plain.features, self.head
        head.rollback(0)
        head.extend([*ids, tokens[0]], features[: len(ids)].clone())
        nothing = [-1] * len(states_columns(self.depth))
        for q in range(len(tokens) - 1):
            if q:
                row = len(ids) + q - 1
                head.extend([tokens[q]], features[row : row + 1].clone())
            found = nothing[len(STATES) :]
            if q < n_counted - 1:
                found = _asked(head, tokens[q + 1 : q + 1 + self.depth])
            yield (q, 0, tokens[q + 1], -1, 0.0, *found)
            tell(q)

    def _of_below(self, ids, tokens, p_target, n_counted, tell) -> Iterator[tuple]:
        """States of the model below the target, on the text and on its own branches."""
        below = self.below
        below.rollback(0)
        below.cache.truncate(0)
        n_branch = self.n_before + self.depth - 1
        last_root = n_counted + self.n_before - 3
        read = below.model.read(ids, below.cache)
        on_text: list[_Said] = []
        branches: dict[int, list[_Said]] = {}
        for q in range(len(tokens) - 1):
            feature = below.model.read([tokens[q]], below.cache)
            on_text.append(self._say(feature, tokens[q + 1], p_target[q + 1]))
            if self.head is not None and on_text[q].token != tokens[q + 1]:
                stored = below.cache.kv_len
                branches[q] = self._run_off(on_text[q].token, n_branch)
                below.cache.truncate(stored)
        if self.head is not None:
            self.head.rollback(0)
            self.head.extend([*ids, tokens[0]], read.clone())
        later: list[tuple] = []
        for q, state in enumerate(on_text):
            if q and self.head is not None:
                self.head.extend([tokens[q]], on_text[q - 1].feature)
            ahead = self._continued(q, tokens, on_text, branches)
            ranks = self._ranks(ahead, q <= last_root)
            yield (q, 0, state.token, state.second, state.margin, *ranks)
            tell(q)
            for j, off in enumerate(branches.get(q, ()), 1):
                told = [state, *branches[q]][j - 1]
                if j < self.n_before:
                    self.head.extend([told.token], told.feature)
                ahead = [said.token for said in branches[q][j - 1 :]]
                ranks = self._ranks(ahead, j < self.n_before and q <= last_root)
                later.append((q, j, off.token, off.second, off.margin, *ranks))
            if q in branches:
                self.head.rollback(len(ids) + q + 1)
        yield from later

    def _ranks(self, ahead: list[int], wanted: bool) -> list[int]:
        if self.head is None:
            return []
        if not wanted:
            return [-1] * (self.depth + len(rank_columns(self.depth)))
        return _asked(self.head, ahead[: self.depth])

    def _continued(self, q: int, tokens, on_text, branches) -> list[int]:
        """The model's own text behind position q, as long as a draft is deep."""
        ahead = []
        for at in range(q, min(q + self.depth, len(on_text))):
            ahead.append(on_text[at].token)
            if at in branches:
                ahead += [said.token for said in branches[at]]
                break
        return ahead[: self.depth]

    def _run_off(self, token: int, n: int) -> list[_Said]:
        """What the model says for `n` steps when nobody corrects it."""
        said = []
        for _ in range(n):
            said.append(self._say(self.below.model.read([token], self.below.cache)))
            token = said[-1].token
        return said

    def _say(self, feature: Tensor, truth: int | None = None, p_target=None) -> _Said:
        """The model's next token, drawn together with the target's where that was drawn."""
        logits = self.below.model.logits(feature)[0]
        if self.config.temperature == 0 or not self.below.sampling:
            token = int(logits.argmax())
        else:
            q = distribution(logits, self.config.temperature)
            token = self.choose(q) if truth is None else self._coupled(q, truth, p_target[0])
        rest = logits.clone()
        rest[token] = -torch.inf
        second = int(rest.argmax())
        return _Said(token, second, float(logits[token] - logits[second]), feature.clone())

    def _coupled(self, q: Tensor, truth: int, p: Tensor) -> int:
        keep = (q[truth] / p[truth]).clamp(max=1)
        if self.choose(torch.stack([keep, 1 - keep])) == 0:
            return truth
        more = (q - p).clamp(min=0)
        return self.choose(more / more.sum())


def _asked(head: Eagle2Drafter, ahead: list[int]) -> list[int]:
    """A head's draft from where it stands, as `child_l` and `rank_d_l` of the text ahead."""
    tokens, scores, parents = head.grow()
    ranks = ranks_of(tokens, scores, parents, ahead, head.top_k, head.depth)
    places = head.places(ahead, MAX_CHILD)
    return places + [-1] * (head.depth - len(places)) + ranks


def ranks_of(
    tokens: np.ndarray,
    scores: np.ndarray,
    parents: np.ndarray,
    ahead: list[int],
    top_k: int,
    depth: int,
) -> list[int]:
    """`rank_d_l` of a text in a draft's nodes, in the order of `rank_columns`.

    Args:
        tokens, scores, parents: as `Eagle2Drafter.grow` gives them.
        ahead: the text behind the root.
    """
    path, parent = [], -1
    for token in ahead:
        here = np.flatnonzero((parents == parent) & (tokens == token))
        if not len(here):
            break
        parent = int(here[0])
        path.append(parent)
    numbers = np.arange(len(scores))
    # nodes before each of the path's, counted over ever more levels
    before = [
        np.cumsum((scores > scores[node]) | ((scores == scores[node]) & (numbers < node)))
        for node in path
    ]
    k = min(top_k, len(scores))
    ranks = []
    for d in range(1, depth + 1):
        last = min(k + (d - 1) * k * k, len(scores)) - 1
        ranks += [int(count[last]) for count in before[:d]] + [-1] * (d - len(before[:d]))
    return ranks


class _Teller:
    """Tells positions done, those behind the end of a text not counted."""

    def __init__(self, progress: Progress | None, index: int, n: int, total: int, words: str):
        self.progress, self.n, self.total, self.words = progress, n, total, words
        self.done = index * n

    def __call__(self, position: int) -> None:
        if self.progress and position % 8 == 0:
            self.progress(self.done + min(position, self.n), self.total, self.words)


def _empty(columns: dict[str, str]) -> pd.DataFrame:
    return pd.DataFrame({name: pd.Series(dtype=kind) for name, kind in columns.items()})
