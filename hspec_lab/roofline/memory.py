"""What a model needs of a device's memory, roughly; what does not fit is told by `fits`."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from hspec_lab.device import Device
from hspec_lab.roofline.shape import Shape, kv_token_bytes, matrix_bytes
from hspec_lab.roofline.work import PREFILL_CHUNK
from hspec_lab.scheme import Scheme

# rows whose logits a verification holds at once, at most
_LOGIT_ROWS = 128
# of a device's memory, what its driver and libraries leave; assumed
USABLE = 0.93


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Bytes of one level.

    Attributes:
        weights: of all products, the output layer included.
        embedding: of its table; 0 where it is the output layer's.
        kv: keys and values of the whole context.
        activations: of the longest pass, rough.
    """

    weights: float
    embedding: float
    kv: float
    activations: float

    @property
    def total(self) -> float:
        return self.weights + self.embedding + self.kv + self.activations


def memory_bytes(shape: Shape, scheme: Scheme, context: int, kind: str = "gpu") -> Memory:
    """What a model of this shape needs to decode texts of `context` tokens."""
    layer = sum(matrix_bytes(scheme, *size, kind) for size in shape.matrices.values())
    head = matrix_bytes(scheme.output, shape.vocab, shape.hidden, kind)
    # an output layer of the same numbers as the embedding is one table only where neither rounds
    shared = shape.tied and not scheme.output.rounds and scheme.embedding == 16
    bytes_each = scheme.embedding / 8
    if scheme.embedding == 16 and kind == "cpu":
        bytes_each = 4
    widest = 2 * shape.hidden + 3 * shape.inner + (shape.heads + shape.kv_heads) * shape.head_dim
    return Memory(
        weights=shape.layers * layer + head,
        embedding=0.0 if shared else shape.vocab * shape.hidden * bytes_each,
        kv=context * shape.layers * kv_token_bytes(shape, scheme, kind),
        # a chunk's residual stream, gates and queries, in fp32; then logits
        activations=4 * (PREFILL_CHUNK * widest + _LOGIT_ROWS * shape.vocab),
    )


def head_bytes(shape: Shape, head: Scheme, context: int, kind: str = "gpu") -> Memory:
    """What a draft head needs beside the model that it drafts for."""
    one = replace(shape, layers=1)
    sizes = [*one.matrices.values(), (shape.hidden, 2 * shape.hidden)]
    return Memory(
        weights=sum(matrix_bytes(head, *size, kind) for size in sizes),
        embedding=0.0,
        kv=context * kv_token_bytes(one, replace(head, kv=16), kind),
        # the model's features of a text, kept for the head to read
        activations=(4 if kind == "cpu" else 2) * context * shape.hidden,
    )


def fits(device: Device, levels: Iterable[Memory]) -> bool:
    """Whether all levels fit at once in what is usable of a device's memory.

    Raises:
        ValueError: the device's memory is not known.
    """
    return sum(level.total for level in levels) <= USABLE * device.memory_bytes
