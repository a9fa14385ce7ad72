"""Real shapes with made-up weights, for measuring speed: time does not depend on values.

Such a model answers nothing; what it is good for is how long a pass takes.  A folder with a
`config.json` is a shape; several ship in `hspec_profiles/shapes`.
"""

import hashlib
from importlib import resources
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from hspec_lab.model.checkpoint import Sizes, head_tensors, model_tensors
from hspec_lab.model.shape import read_shape, with_context

_BLOCK = 1 << 20  # numbers drawn per tensor; longer ones repeat them


def shapes() -> list[str]:
    """Names of the shapes that ship."""
    return sorted(path.name for path in _shipped().iterdir() if path.is_dir())


def _shipped() -> Path:
    return Path(str(resources.files("hspec_profiles") / "shapes"))


class SyntheticCheckpoint:
    """Stands in for `Checkpoint`: the same questions, answered with seeded normal numbers.

    A tensor's first 2**20 numbers are drawn on the CPU and repeated on `device`, so that even the
    largest model is made there, one tensor at a time, and never lies in the CPU's memory.

    Args:
        name: a shape that ships, or a folder with a `config.json`.
        context: positions the model must reach.
        device: where tensors are made; their values are the same everywhere.

    Raises:
        ValueError: no such shape.
    """

    format = None  # nothing is rounded yet

    def __init__(self, name: str, context: int = 1, device: str = "cpu"):
        shipped = _shipped() / name
        self.folder = shipped if shipped.is_dir() else Path(name).expanduser()
        if not self.folder.is_dir():
            raise ValueError(f"no shape {name!r}; there are {', '.join(shapes())}, or a folder")
        self.shape = with_context(read_shape(self.folder), context)
        self.device = torch.device(device)
        self._sizes: Sizes = model_tensors(self.shape) | head_tensors(self.shape)

    def check(self, sizes: Sizes) -> None:
        """Nothing can be missing."""

    def tensor(self, name: str) -> Tensor:
        """bf16, mean 0, a variance that keeps activations near one; norms are ones."""
        size = self._sizes[name]
        if len(size) == 1:
            return torch.ones(size, dtype=torch.bfloat16, device=self.device)
        seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:7], "little")
        generator = torch.Generator().manual_seed(seed)
        n = prod(size)
        drawn = torch.randn(min(n, _BLOCK), generator=generator) * size[1] ** -0.5
        drawn = drawn.bfloat16().to(self.device)
        return drawn.repeat(-(-n // len(drawn)))[:n].view(size)

    def form(self, unit: str) -> None:
        """Every unit is plain."""

    def optional(self, name: str) -> Tensor | None:
        return self.tensor(name) if name in self._sizes else None
