"""Static key/value cache: rows are appended, accepted paths are moved together, the rest is cut.

    storage  [layers, capacity, 2 * kv_heads, head_dim], keys first, then values
    kv_len   rows that count; a forward pass writes behind them, `commit` decides which stay

Keys and values of one token lie side by side, so that a token is one row and moving an accepted
path is one gather over all layers.

A cache of few bits rounds each token as it is appended and holds what the codes stand for: the
numbers are those of few bits, the memory it works in is not.  `stored_nbytes` says what the codes
would take.
"""

import torch
from torch import Tensor

from hspec_lab.quant.kv_bits import KVRounding


class KVCache:
    """Keys and values of one sequence, for every layer of one model.

    Args:
        rounding: how tokens are rounded when they are appended; None: not at all.
    """

    __slots__ = ("kv_len", "rounding", "storage")

    def __init__(
        self,
        layers: int,
        kv_heads: int,
        head_dim: int,
        capacity: int,
        dtype,
        device,
        rounding: KVRounding | None = None,
    ):
        self.storage = torch.zeros(
            layers, capacity, 2 * kv_heads, head_dim, dtype=dtype, device=device
        )
        self.kv_len, self.rounding = 0, rounding

    @property
    def capacity(self) -> int:
        return self.storage.shape[1]

    @property
    def nbytes(self) -> int:
        """Bytes of the working memory, all of the capacity, in the dtype it is computed in."""
        return self.storage.nbytes

    @property
    def stored_nbytes(self) -> int:
        """Bytes that the stored tokens take: packed where they are rounded, sinks as they are."""
        layers, _, heads, D = self.storage.shape
        token = layers * heads * D * self.storage.element_size()
        if self.rounding is None:
            return self.kv_len * token
        n_kept = min(self.kv_len, self.rounding.sinks)
        packed = self.rounding.bytes_per_token(layers, heads // 2)
        return n_kept * token + (self.kv_len - n_kept) * packed

    @property
    def meets_sinks(self) -> bool:
        """Whether a row written now may be one of the first tokens, which are not rounded."""
        return self.rounding is not None and self.kv_len < self.rounding.sinks

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

    def append(
        self, layer: int, start: int, keys: Tensor, values: Tensor, positions: Tensor | None = None
    ) -> None:
        """Write the rows of one layer from row `start` on, rounded where the cache rounds.

        Args:
            keys, values: [T, kv_heads, head_dim].
            positions: int64 [T], places in the text; needed where the cache `meets_sinks`.
        """
        T, K, _ = keys.shape
        written = self.storage[layer, start : start + T]
        written[:, :K] = keys
        written[:, K:] = values
        if self.rounding is not None:
            written.copy_(self.rounding.round(written, positions))

    def fill_noise(self, generator: torch.Generator) -> None:
        """Fill all rows with noise of about unit size: for timing, where values do not matter."""
        self.storage.normal_(generator=generator)

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


class DeviceCache(KVCache):
    """A cache whose length also lies on the device, where kernels read it.

    With dtype int8 it holds codes and their scales: kernels round each token and head to 8 bits
    as they append it, without rotation and without sinks, which 8 bits do not need.

    Attributes:
        kv_scale: fp16 [layers, capacity, 2 * kv_heads], of int8 storage; else None.
    """

    __slots__ = ("kv_len_on_device", "kv_scale")

    def __init__(self, layers: int, kv_heads: int, head_dim: int, capacity: int, dtype, device):
        super().__init__(layers, kv_heads, head_dim, capacity, dtype, device)
        self.kv_len_on_device = torch.zeros(1, dtype=torch.int32, device=device)
        self.kv_scale = None
        if dtype == torch.int8:
            size = layers, capacity, 2 * kv_heads
            self.kv_scale = torch.zeros(size, dtype=torch.float16, device=device)

    @property
    def nbytes(self) -> int:
        """Bytes of codes and scales, all of the capacity."""
        return self.storage.nbytes + (0 if self.kv_scale is None else self.kv_scale.nbytes)

    @property
    def stored_nbytes(self) -> int:
        """Bytes that the stored tokens take."""
        return self.kv_len * self.nbytes // self.capacity

    def by_layer(self) -> list[tuple[Tensor, Tensor | None]]:
        """What kernels read and write of each layer: its rows, and their scales."""
        scales = [None] * len(self.storage) if self.kv_scale is None else self.kv_scale
        return list(zip(self.storage, scales, strict=True))

    def fill_noise(self, generator: torch.Generator) -> None:
        if self.kv_scale is None:
            return super().fill_noise(generator)
        self.storage.random_(-127, 128, generator=generator)
        self.kv_scale.fill_(2.0**-6)

    def commit(self, path: list[int]) -> None:
        from hspec_kernels.kv_commit import kv_commit

        n = len(path)
        if path[-1] == n - 1:  # increasing, so it is 0..n-1 and nothing moves
            self.kv_len_on_device += n
        else:
            offsets = torch.tensor(path, dtype=torch.int32, device=self.storage.device)
            count = torch.full_like(self.kv_len_on_device, n)
            kept = {"kv_scale": self.kv_scale, "trusted": True}
            kv_commit(self.storage, offsets, count, self.kv_len_on_device, **kept)
        self.kv_len += n

    def truncate(self, kv_len: int) -> None:
        super().truncate(kv_len)
        self.kv_len_on_device.fill_(self.kv_len)
