"""EAGLE-2 on the device: one stage ingests, grows the tree and picks its best nodes.

The same tree as `draft.Eagle2Drafter`'s, in one CUDA graph where that takes dozens of launches and
several reads.  `tree_expand` keeps the history and chooses each frontier, `tree_rerank` lays the
tree out for the level that verifies it.
"""

import torch
from torch import Tensor

from hspec_lab.model.transformer import PREFILL_CHUNK
from hspec_lab.runtime.memory import Memory
from hspec_lab.runtime.offer import Offer, empty_tree
from hspec_lab.runtime.stage import bucket_of
from hspec_lab.trace import NO_RECORDER


class DeviceEagle2:
    """Proposes a dynamic tree; its nodes are chosen, not drawn.

    Args:
        head: a `FusedHead` over the model it will draft for.

    Attributes:
        longest: nodes of the longest path through a tree, the root included.
    """

    level = "head"

    def __init__(
        self, head, memory: Memory, *, tree_size: int, depth: int, top_k: int, recorder=NO_RECORDER
    ):
        from hspec_kernels.tree_expand import empty_history, root_frontier

        self.head, self.memory, self.recorder = head, memory, recorder
        self.depth, self.top_k, self.longest = depth, top_k, depth + 1
        self.cache, device = head.new_cache(memory.capacity), memory.device
        self.history = empty_history(top_k, depth, device)
        self.root = root_frontier(top_k, depth, device)
        self.n_nodes = min(tree_size, len(self.history.tokens) + 1)
        self.tree = empty_tree(memory, bucket_of(self.n_nodes))
        # what a round can leave to ingest: an accepted path, the bonus, and a catch-up's token
        self.fresh = torch.arange(bucket_of(depth + 3), dtype=torch.int32, device=device)
        self._draft = memory.stage(self._grow)

    def attach(self, level) -> None:
        self.level_above, self.features = level, level.keep_features()

    def prepare(self) -> None:
        """Ingest the prompt but for its last token, which the first draft ingests."""
        self.cache.truncate(0)
        text, n_rows = self.memory.text, len(self.level_above.tokens) - 2
        with self.recorder.span("prefill", self.level, n_rows, 0):
            for start in range(0, n_rows, PREFILL_CHUNK):
                rows = slice(start, min(start + PREFILL_CHUNK, n_rows))
                n = rows.stop - start
                depths = torch.arange(n, dtype=torch.int32, device=self.memory.device)
                tokens = text[start + 1 : rows.stop + 1]
                self.head.run(tokens, self.features[rows], depths, None, self.cache)
                self.cache.commit(list(range(n)))

    def start_made_up(self) -> None:
        self.cache.kv_len = len(self.level_above.tokens) - 2
        self.cache.kv_len_on_device.fill_(self.cache.kv_len)

    def propose(self) -> Offer:
        n_text, kv_len = len(self.level_above.tokens), self.cache.kv_len
        with self.recorder.span("draft", self.level, n_text - kv_len, kv_len, self.n_nodes):
            self._draft()
        self.cache.kv_len = n_text - 1
        return Offer(self.n_nodes, self.tree, longest=self.longest)

    def follow(self, agreed: Tensor) -> None:
        kv_len = self.cache.kv_len_on_device
        # row i is of token i + 1, so the last of the agreed tokens is in row agreed - 2
        torch.minimum(kv_len, agreed - 1, out=kv_len)

    def followed(self, agreed: int) -> None:
        self.cache.kv_len = min(self.cache.kv_len, agreed - 1)

    def sources_of(self, accepted: list[int]) -> list[str]:
        return [self.level] * len(accepted)

    def _grow(self) -> None:
        from hspec_kernels.tree_expand import tree_expand
        from hspec_kernels.tree_rerank import tree_rerank

        k, guessed = self.top_k, self._ingest()
        frontier = tree_expand(*self._top_k(guessed), self.root, self.history, 0, trusted=True)
        tokens, inputs, seen = [], [], []
        guessed = guessed.expand(k, -1)
        for level in range(1, self.depth):
            # a level runs together with the levels above it, see `FusedHead`
            tokens.append(frontier.tokens)
            inputs.append(guessed.index_select(0, frontier.came_from) if level > 1 else guessed)
            seen.append(frontier.seen)
            guessed = self._run_levels(tokens, inputs, seen)[-k:]
            frontier = tree_expand(
                *self._top_k(guessed), frontier, self.history, level, trusted=True
            )
        text, n_text = self.memory.text, self.level_above.state.n_text
        root = text.index_select(0, n_text - 1)
        tree_rerank(
            root,
            self.history,
            self.n_nodes,
            bucket=len(self.tree.tokens),
            out=self.tree,
            trusted=True,
        )

    def _ingest(self) -> Tensor:
        """Run the head over what is new; the guess behind the last of it, [1, hidden]."""
        stored, n_text = self.cache.kv_len_on_device, self.level_above.state.n_text
        rows = stored + self.fresh
        tokens = self.memory.text.index_select(0, rows + 1)
        features = self.features.index_select(0, rows)
        guessed = self.head.run(tokens, features, self.fresh, None, self.cache)
        n_new = n_text - 1 - stored
        stored += n_new
        return guessed.index_select(0, n_new - 1)

    def _run_levels(self, tokens: list, inputs: list, seen: list) -> Tensor:
        """Guesses behind every row of the tree's levels so far."""
        n = len(tokens) * self.top_k
        depths = torch.arange(n, dtype=torch.int32, device=self.memory.device) // self.top_k
        ancestors = torch.cat(seen)[:, : -(-n // 64)].contiguous()
        return self.head.run(torch.cat(tokens), torch.cat(inputs), depths, ancestors, self.cache)

    def _top_k(self, guessed: Tensor) -> tuple[Tensor, Tensor]:
        from hspec_kernels.head_topk import head_topk

        model = self.head.model
        return head_topk(model.lm_head(guessed), self.top_k, n_known=model.n_known)
