"""What the levels of one decoder share, and what each has of its own, in device memory."""

from collections.abc import Callable

import torch
from torch import Tensor

from hspec_lab.runtime.dice import Dice
from hspec_lab.runtime.stage import Stage


class Memory:
    """The one text that all levels read and write, and how stages are made.

    Args:
        capacity: positions of the text and rows of every cache; room for the longest text with the
            longest draft and a padded pass behind it.
        dice: what levels at a temperature draw from; None where all are greedy.

    Attributes:
        text: int32 [capacity], token ids by position.  A level's text is its first `n_text`; a
            draft is what a lower level has written behind that.
        bad: int32 [1], not 0 once a row of logits had no distribution.
    """

    def __init__(self, capacity: int, device: torch.device | str, dice: Dice | None = None):
        self.capacity, self.device, self.dice = capacity, torch.device(device), dice
        self.text = torch.zeros(capacity, dtype=torch.int32, device=self.device)
        self.bad = torch.zeros(1, dtype=torch.int32, device=self.device)
        self._pool = torch.cuda.graph_pool_handle() if self.device.type == "cuda" else None

    def stage(self, launches: Callable[[], None]) -> Stage:
        return Stage(launches, self.device, self._pool)

    def int32(self, *shape: int) -> Tensor:
        return torch.zeros(*shape, dtype=torch.int32, device=self.device)

    def write(self, start: int, tokens: list[int]) -> None:
        """Put tokens into the text, from the host."""
        ids = torch.tensor(tokens, dtype=torch.int32)
        self.text[start : start + len(tokens)] = ids.to(self.device)


class State:
    """One model's place in the text: a cache, and how far its text goes, in device memory.

    Args:
        model: `run`, `lm_head`, `new_cache` as in `model.FusedTransformer`.

    Attributes:
        n_text: int32 [1], tokens of this level's text; the last one is pending.
        kv_len: int32 [1], tokens whose keys and values are stored.
    """

    def __init__(self, model, memory: Memory):
        self.model, self.memory = model, memory
        self.cache = model.new_cache(memory.capacity)
        self.n_text, self.kv_len = memory.int32(1), self.cache.kv_len_on_device

    def stand_at(self, kv_len: int) -> None:
        """Say that so many tokens are stored and one is pending."""
        self.cache.kv_len = kv_len
        self.kv_len.fill_(kv_len)
        self.n_text.fill_(kv_len + 1)

    def run_path(self, rows: int) -> Tensor:
        """Features, dtype [rows, hidden], of the text behind what is stored, padding included."""
        place = torch.arange(rows, dtype=torch.int32, device=self.memory.device)
        ids = self.memory.text.index_select(0, self.kv_len + place)
        return self.model.run(ids, place, None, self.cache)

    def best(self, features: Tensor) -> Tensor:
        """int32 [T]: the most likely token behind each row, ties to the lower id."""
        from hspec_kernels.head_topk import head_topk

        model = self.model
        ids, log_p = head_topk(model.lm_head(features), 1, n_known=model.n_known)
        self.memory.bad += log_p.isnan().any()
        return ids.flatten()

    def follow(self, n_text: Tensor, agreed: Tensor) -> None:
        """Launches: take over a text of which the first `agreed` tokens are as they were."""
        self.n_text.copy_(n_text)
        torch.minimum(self.kv_len, agreed, out=self.kv_len)


class Report:
    """What the host reads in a round: how many tokens were emitted, which, and whether to trust it.

    Args:
        most: tokens a round can emit.
    """

    def __init__(self, memory: Memory, most: int):
        on_cuda = memory.device.type == "cuda"
        # tokens emitted, whether logits were bad, the tokens
        self.on_device = memory.int32(2 + most)
        self._host = torch.zeros(2 + most, dtype=torch.int32, pin_memory=on_cuda)
        self._event = torch.cuda.Event() if on_cuda else None

    def read(self, who: str) -> list[int]:
        """Wait for the round and return its tokens; ValueError when a level's logits are bad."""
        self._host.copy_(self.on_device, non_blocking=True)
        if self._event is not None:
            self._event.record()
            self._event.synchronize()
        n_emitted, bad, *tokens = self._host.tolist()
        if bad:
            raise ValueError(
                f"{who}: NaN or infinity in the logits of this model or of a model below it; "
                "check the checkpoint, or decode it at another format"
            )
        return tokens[:n_emitted]
