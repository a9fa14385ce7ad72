"""Static key/value cache: rows are appended, accepted paths are moved together, the rest is cut.

    storage  [layers, capacity, 2 * kv_heads, head_dim], keys first, then values
    kv_len   rows that count; a forward pass writes behind them, `commit` decides which stay

Keys and values of one token lie side by side, so that a token is one row and moving an accepted
path is one gather over all layers.
"""

import torch
from torch import Tensor


class KVCache:
    """Keys and values of one sequence, for every layer of one model."""

    __slots__ = ("kv_len", "storage")

    def __init__(self, layers: int, kv_heads: int, head_dim: int, capacity: int, dtype, device):
        self.storage = torch.zeros(
            layers, capacity, 2 * kv_heads, head_dim, dtype=dtype, device=device
        )
        self.kv_len = 0

    @property
    def capacity(self) -> int:
        return self.storage.shape[1]

    @property
    def nbytes(self) -> int:
        return self.storage.nbytes

    def check_room(self, n_rows: int) -> None:
        """ValueError when `n_rows` more rows do not fit."""
        if self.kv_len + n_rows > self.capacity:
            raise ValueError(
                f"the cache holds {self.capacity} tokens; {self.kv_len} are stored and "
                f"{n_rows} more do not fit: a shorter prompt, draft or output would"
            )

    def rows(self, layer: int, start: int, stop: int) -> Tensor:
        """[stop - start, 2 * kv_heads, head_dim], a view."""
        return self.storage[layer, start:stop]

    def commit(self, path: list[int]) -> None:
        """Keep the rows at `kv_len + path[i]`, in this order, and forget what lies behind them.

        Args:
            path: increasing offsets behind `kv_len`, as in a tree's accepted path.
        """
        n = len(path)
        if path[-1] != n - 1:  # increasing and not 0..n-1: there are holes to close
            index = torch.tensor(path, device=self.storage.device) + self.kv_len
            kept = self.storage.index_select(1, index)
            self.storage[:, self.kv_len : self.kv_len + n] = kept
        self.kv_len += n

    def truncate(self, kv_len: int) -> None:
        """Forget all rows from `kv_len` on; never lengthens."""
        self.kv_len = min(self.kv_len, kv_len)
