"""Embeddings of 16, 8 or 4 bits: rows are looked up, so they are expanded one by one.

8, 4 bits   symmetric integers, a bf16 scale a token; 16 bits: as they came, in fp32 here
"""

from dataclasses import dataclass

from torch import Tensor

from hspec_lab.quant.forms import Grouped, rounded, unpack_codes
from hspec_lab.scheme import Scheme


@dataclass(frozen=True, slots=True)
class Embedding:
    """A rounded embedding; `embedding[ids]` is fp32 [T, hidden], as of a plain one."""

    form: Grouped

    @staticmethod
    def of(weight: Tensor, bits: int) -> "Embedding | Tensor":
        """fp32 [vocab, hidden] itself at 16 bits, else rounded."""
        return weight if bits == 16 else Embedding(rounded(weight, Scheme(bits=bits)))

    @property
    def nbytes(self) -> int:
        return self.form.nbytes

    def __getitem__(self, ids: Tensor) -> Tensor:
        form = self.form
        codes = unpack_codes(form.packed[ids], form.scheme.bits, form.shape[1])
        return form.grid.expand(codes[:, None], form.scale[ids], None)[:, 0]
