"""A level's forward pass of one shape: its memory, and the stages that verify, accept and commit.

`CatchUp` runs text that is decided already and emits the token behind it (plain decoding is that,
one row at a time); `PathPass` verifies a draft that lies in the text, `TreePass` a tree.
"""

import torch
from torch import Tensor

from hspec_lab.runtime.memory import Report


class Pass:
    """What the three have in common.

    Args:
        level: a `DeviceLevel`.
        rows: padded.
        longest: tokens one round can emit.

    Attributes:
        verify, accept, commit: stages.
        report: what the host reads behind `commit`.
    """

    drafted = True  # emitted tokens are an accepted path and the model's own

    def __init__(self, level, rows: int, longest: int):
        memory = level.memory
        self.level, self.state, self.rows, self.longest = level, level.state, rows, longest
        self.report = Report(memory, longest)
        self.rule, self.noted = level.rule, level.rule.room(rows)
        self.verdict = memory.int32(rows), memory.int32(1), memory.int32(rows)
        self.kept: Tensor | None = None  # features of all rows, where somebody wants them
        if level.features is not None:
            self.kept = level.features.new_zeros(rows, level.features.shape[1])
        self.verify = memory.stage(self._verify)
        self.accept = level.rule.stage(self._accept, rows)
        self.commit = memory.stage(self._commit)

    def _note(self, features: Tensor) -> None:
        """Launches: keep the features, and what the verdict needs of them."""
        if self.kept is not None:
            self.kept.copy_(features)
        self.rule.note(features, self.noted)

    def _decide(
        self, tokens: Tensor, parents: Tensor, n_nodes: Tensor, p_draft=None, stride: int = 1
    ) -> None:
        """Launches: the verdict on a tree; a level that replays takes its length from a record."""
        from hspec_kernels.replay_verdict import replay_verdict

        last = self.rule.decide(self.noted, tokens, parents, p_draft, out=self.verdict)
        if self.level.replay is not None:
            replay = self.level.replay
            replay_verdict(tokens, last, *replay, n_nodes, stride, out=self.verdict)
        self.rule.hand_up(self.noted, self.verdict[0][: self.longest])

    def _keep(self, nodes: Tensor | None = None) -> None:
        """Launches: features of the rows that stay (all of a path), behind those of the text."""
        if self.kept is not None:
            kept = self.kept if nodes is None else self.kept.index_select(0, nodes)
            place = torch.arange(len(kept), device=kept.device)
            self.level.features.index_copy_(0, self.state.kv_len + place, kept)

    def _emit(self, emitted: Tensor, n_emitted: Tensor, path: Tensor | None = None) -> None:
        """Launches: end the round, and let the levels below follow."""
        from hspec_kernels.append_verdict import append_verdict

        level, state, memory = self.level, self.state, self.level.memory
        append_verdict(
            emitted,
            n_emitted,
            memory.text,
            state.n_text,
            state.kv_len,
            level.agreed,
            memory.bad,
            self.report.on_device,
            path=path,
            trusted=True,
        )
        if level.drafter is not None:
            level.drafter.follow(level.agreed)


class CatchUp(Pass):
    """Run all pending tokens as one path and emit the token behind them."""

    drafted = False

    def __init__(self, level, rows: int):
        super().__init__(level, rows, longest=1)
        self.next = level.memory.int32(1)
        self.one = torch.ones_like(self.next)
        self.verify = level.rule.stage(self._verify, 1)
        self.accept = self._accept  # launches nothing: no graph

    def _verify(self) -> None:
        state = self.state
        features = state.run_path(self.rows)
        if self.kept is not None:
            self.kept.copy_(features)
        last = features.index_select(0, state.n_text - state.kv_len - 1)
        self.next.copy_(self.rule.pick(last))

    def _accept(self) -> None:
        """The token behind the last row is the verdict."""

    def _commit(self) -> None:
        self._keep()
        self._emit(self.next, self.one)


class PathPass(Pass):
    """Verify the draft that the drafter has put behind the text."""

    def __init__(self, level, rows: int):
        super().__init__(level, rows, longest=rows)
        self.place = torch.arange(rows, dtype=torch.int32, device=level.memory.device)

    def _verify(self) -> None:
        self._note(self.state.run_path(self.rows))

    def _accept(self) -> None:
        state = self.state
        n_nodes = self.level.drafter.n_text - state.kv_len
        tokens = self.level.memory.text.index_select(0, state.kv_len + self.place)
        # rows behind the draft are padding, whose parent is -1
        parents = (self.place < n_nodes) * self.place - 1
        self._decide(tokens, parents, n_nodes, self.level.drafter.p_draft)

    def _commit(self) -> None:
        _, n_path, emitted = self.verdict
        self._keep()  # a path lies where it belongs
        self._emit(emitted, n_path)


class TreePass(Pass):
    """Verify a tree and move what is accepted of it."""

    def __init__(self, level, tree, longest: int, path_first: bool):
        super().__init__(level, len(tree.tokens), min(longest, len(tree.tokens)))
        self.tree, self.path_first = tree, path_first
        # a replayed path of two nodes a step stays within the longest
        self.n_nodes = torch.full_like(level.agreed, 2 * self.longest - 1)

    def _verify(self) -> None:
        tree, state = self.tree, self.state
        features = state.model.run(tree.tokens, tree.depths, tree.ancestors, state.cache)
        self._note(features)

    def _accept(self) -> None:
        tree, n_nodes, stride = self.tree, self.n_nodes, 2
        if self.path_first:
            n_nodes, stride = self.level.drafter.n_text - self.state.kv_len, 1
        # replayed: of a dynamic tree not the first nodes, a path among which would be unlikely
        self._decide(tree.tokens, tree.parents, n_nodes, stride=stride)

    def _commit(self) -> None:
        from hspec_kernels.kv_commit import kv_commit

        state, (path, n_path, emitted) = self.state, self.verdict
        path, emitted = path[: self.longest], emitted[: self.longest]
        self._keep(path.clamp(min=0))
        kept = {"kv_scale": state.cache.kv_scale, "trusted": True}
        kv_commit(state.cache.storage, path, n_path, state.kv_len, **kept)
        self._emit(emitted, n_path, path)
