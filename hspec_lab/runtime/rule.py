"""How a level picks tokens: its most likely ones, or drawn ones at a temperature.

A pass asks its level's rule what `verify` has to note for `accept`, for the verdict on a draft,
and for the one token behind a row.  Emitted tokens that were drawn are of use to the level above
only together with the distributions they were drawn from, so a sampling level can hand those up:
the one of the token at position i lies in row i - `kv_len` of the level above, like the nodes of
the path that this level will verify.  A roll-back needs nothing: what is drafted again is written
again.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from hspec_lab.runtime.memory import State
from hspec_lab.sample import distribution


def rule_of(state: State, temperature: float) -> "Greedy | Sampling":
    """The rule of a level at a temperature; 0 is greedy."""
    return Sampling(state, temperature) if temperature > 0 else Greedy(state)


class Greedy:
    """The most likely tokens, ties to the lower id; they are chosen and have no distribution.

    Args:
        state: the place in the text of the model that picks.
    """

    def __init__(self, state: State):
        self.state = state

    def stage(self, launches: Callable[[], None], n_numbers: int) -> Callable[[], None]:
        """A stage in which this rule picks; `n_numbers` are what `Sampling` draws for that."""
        return self.state.memory.stage(launches)

    def room(self, rows: int) -> Tensor:
        """Memory for what `note` keeps of so many rows."""
        return self.state.memory.int32(rows)

    def keep_rows(self, outer: State, n_rows: int) -> None:
        """There are none."""

    def first(self, features: Tensor, position: int) -> int:
        """The token behind a prompt, from features [1, hidden]; ValueError without one."""
        return int(self.state.model.logits(features).argmax())

    def pick(self, features: Tensor) -> Tensor:
        """Launches: the token behind one row, int32 [1], from features [1, hidden]."""
        return self.state.best(features)

    def note(self, features: Tensor, noted: Tensor) -> None:
        """Launches: what `decide` has to know of rows [n, hidden]."""
        noted.copy_(self.state.best(features))

    def decide(self, noted: Tensor, tokens: Tensor, parents: Tensor, p_draft, out) -> Tensor:
        """Launches: the verdict on a tree.

        Args:
            noted: from `note`.
            tokens, parents: int32 [n], as for `accept_greedy_tree`.
            p_draft: fp32 [n or more, V], the distributions the tokens were drawn from; None when
                they were chosen.
            out: path, n_path, emitted; written.

        Returns:
            int32 [n], a token behind each node, for a verdict that is replayed.
        """
        from hspec_kernels.accept_greedy_tree import accept_greedy_tree

        accept_greedy_tree(tokens, parents, noted, out=out, trusted=True)
        return noted

    def hand_up(self, noted: Tensor, path: Tensor) -> None:
        """Launches nothing: there are no distributions."""


class GreedyWithRivals(Greedy):
    """The most likely tokens, and beside each what would have been said second.

    Attributes:
        rivals, margins: int32 and fp32 [capacity], the second choice at each place of the text, and
            by how much (in logits) the first was preferred.
    """

    def __init__(self, state: State):
        super().__init__(state)
        memory = state.memory
        self.rivals = memory.int32(memory.capacity)
        self.margins = torch.zeros(memory.capacity, dtype=torch.float32, device=memory.device)

    def room(self, rows: int) -> Tensor:
        # first choices, second ones, and margins as bits
        return self.state.memory.int32(3, rows)

    def first(self, features: Tensor, position: int) -> int:
        token = super().first(features, position)
        self.state.n_text.fill_(position)
        self.pick(features)
        return token

    def pick(self, features: Tensor) -> Tensor:
        noted = self.room(1)
        self.note(features, noted)
        self.hand_up(noted, torch.zeros_like(noted[0]))
        return noted[0]

    def note(self, features: Tensor, noted: Tensor) -> None:
        from hspec_kernels.head_topk import head_topk

        model = self.state.model
        logits = model.lm_head(features)
        ids, log_p = head_topk(logits, 2, n_known=model.n_known)
        self.state.memory.bad += log_p.isnan().any()
        # of the logits themselves: equal margins stay equal
        values = logits.gather(1, ids.long()).float()
        noted[:2].copy_(ids.T)
        noted[2].copy_((values[:, 0] - values[:, 1]).view(torch.int32))

    def decide(self, noted: Tensor, tokens: Tensor, parents: Tensor, p_draft, out) -> Tensor:
        return super().decide(noted[0], tokens, parents, p_draft, out)

    def hand_up(self, noted: Tensor, path: Tensor) -> None:
        """Launches: keep the rivals of the tokens behind the nodes of a path."""
        noted = noted.index_select(1, path.clamp(min=0))
        # what is written past the path's end is of tokens that do not exist yet
        place = self.state.n_text + torch.arange(len(path), device=path.device)
        self.rivals.index_copy_(0, place, noted[1])
        self.margins.index_copy_(0, place, noted[2].view(torch.float32))


class Sampling:
    """Tokens drawn at a temperature, such that the text follows the model exactly.

    The questions of `Greedy`.

    Args:
        state: the place in the text of the model that picks; its memory holds the dice.
        temperature: above 0.

    Attributes:
        rows: fp32 [n, V], what is handed up; None where nobody asks.
    """

    def __init__(self, state: State, temperature: float):
        memory = state.memory
        if memory.dice is None:
            raise ValueError(f"temperature {temperature} needs a memory with dice, got none")
        self.state, self.dice, self.temperature = state, memory.dice, temperature
        self.root = memory.int32(1)
        self.no_parent = torch.full_like(self.root, -1)
        self.rows: Tensor | None = None

    def stage(self, launches: Callable[[], None], n_numbers: int) -> Callable[[], None]:
        stage = self.state.memory.stage(launches)

        def run() -> None:
            self.dice.provide(n_numbers)
            stage()

        return run

    def room(self, rows: int) -> Tensor:
        model = self.state.model
        size = rows, model.n_known
        return torch.zeros(size, dtype=model.dtype, device=self.state.memory.device)

    def keep_rows(self, outer: State, n_rows: int) -> Tensor:
        """From now on hand up to the level whose place is `outer`; fp32 [n_rows, V]."""
        size, device = (n_rows, self.state.model.n_known), self.state.memory.device
        self.outer, self.rows = outer, torch.zeros(size, dtype=torch.float32, device=device)
        return self.rows

    def first(self, features: Tensor, position: int) -> int:
        self.dice.provide(1)
        self.state.n_text.fill_(position)
        return int(self._draw(self.state.model.logits(features)))

    def pick(self, features: Tensor) -> Tensor:
        return self._draw(self._logits(features).contiguous())

    def note(self, features: Tensor, noted: Tensor) -> None:
        noted.copy_(self._logits(features))

    def decide(self, noted: Tensor, tokens: Tensor, parents: Tensor, p_draft, out) -> Tensor:
        from hspec_kernels.accept_drawn_tree import accept_drawn_tree
        from hspec_kernels.accept_sample_tree import accept_sample_tree

        offered = noted, tokens, parents, self.dice.take(len(tokens)), self.temperature
        if p_draft is None:
            accept_sample_tree(*offered, out=out, trusted=True)
        else:
            accept_drawn_tree(*offered, p_draft[: len(tokens)], out=out, trusted=True)
        self._refuse(out[1])
        return tokens

    def hand_up(self, noted: Tensor, path: Tensor) -> None:
        """Launches: hand up what the tokens behind the nodes of a path, -1 past its end, follow."""
        if self.rows is None:
            return
        rows = distribution(noted.index_select(0, path.clamp(min=0)), self.temperature)
        # what is written past the path's end is of tokens that do not exist yet
        place = torch.arange(len(path), device=rows.device)
        self.rows.index_copy_(0, self.state.n_text - self.outer.kv_len + place, rows)

    def _draw(self, logits: Tensor) -> Tensor:
        """Launches: a token from logits [1, V], int32 [1]."""
        from hspec_kernels.accept_sample_tree import accept_sample_tree

        path, n_path, emitted = accept_sample_tree(
            logits, self.root, self.no_parent, self.dice.take(1), self.temperature, trusted=True
        )
        self._refuse(n_path)
        self.hand_up(logits, path)
        # a token all the same when there is no distribution: launches that follow look it up
        return emitted.clamp(min=0)

    def _logits(self, features: Tensor) -> Tensor:
        model = self.state.model
        return model.lm_head(features)[:, : model.n_known]

    def _refuse(self, n_path: Tensor) -> None:
        """Launches: note that a row had no distribution."""
        self.state.memory.bad += n_path == 0
