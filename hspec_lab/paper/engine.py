"""A small model of batch-1 decoding on a GPU, with as few parameters as explain published bars.

    step      sum over matrix products of the longest of
                  memory        stored bytes / (memory_share x bandwidth)
                  waiting       stored bytes x latency_us / (programs x bytes each has under way)
                  multiplying   2 x rows x weights / (multiply_share x peak), rows in whole tiles
              + layers x (layer_us + row_us x (rows - 1)) + keys and values, by memory
    EAGLE-2   tau x step / (depth x pass of the head + step over the tree)

`waiting` is what a kernel does whose programs each walk along all inputs alone: a matrix of few
outputs has fewer programs than the device has multiprocessors, and none reads faster than what
it has under way allows.  A level of a tree is accepted with one probability a model, whatever the
format: tau = 1 + p + ... + p^depth.  Draft head, output layer, keys and values have 16 bits.
"""

import json
import tomllib
from dataclasses import dataclass
from functools import cache
from importlib import resources

from hspec_lab.device import Device, load
from hspec_lab.roofline import Shape, shape_of

CONTEXT = 600  # tokens stored on average in MT-Bench's two turns: an assumption
_TOP_K = 10  # rows of a pass of the head


@dataclass(frozen=True)
class Kernel:
    """What multiplies a format's weights; profiles/paper/kernels.toml says what each field is."""

    weight_bytes: float
    row_tile: int
    operand: str
    source: str
    depth_share: float = 1.0
    column_tile: int = 0
    stream_bytes: int = 0
    grouped: bool = False
    instructions: float = 0.0


@dataclass(frozen=True)
class Fitted:
    """The parameters; the values here are where fitting starts.

    Attributes:
        memory_share: of the bandwidth, what kernels reach.
        layer_us: a layer's time beside its matrix products: launches, norms, attention.
        latency_us: of a program's read, from asking to multiplying.
        group_cost: factor on products of 8-bit rows with weights in groups.
        row_us: what a further row costs a layer beside its matrix products.
        multiply_share: of the peak, what kernels reach.
        accept_8b, accept_70b: probability that a level of an EAGLE-2 tree is accepted.
        agreement: probability that Llama-3-70B says what Llama-3-8B says.
    """

    memory_share: float = 0.85
    layer_us: float = 80.0
    latency_us: float = 1.0
    group_cost: float = 1.1
    row_us: float = 1.0
    multiply_share: float = 0.7
    accept_8b: float = 0.8
    accept_70b: float = 0.8
    agreement: float = 0.85


@dataclass(frozen=True, eq=False)
class Engine:
    """One model on one device, with the kernels of its formats by the paper's names."""

    device: Device
    shape: Shape
    fitted: Fitted
    kernels: dict[str, Kernel]

    def needs(self, kernel: Kernel, outputs: int, inputs: int, n_rows: int) -> dict[str, float]:
        """us of a matrix product if it only read, only waited, only multiplied: the longest counts.

        Returns:
            memory, waiting (where inputs are not split), multiplying.
        """
        stored = outputs * inputs * kernel.weight_bytes
        rows = -(-n_rows // kernel.row_tile) * kernel.row_tile
        peak = self.fitted.multiply_share * kernel.depth_share * self.device.peak(kernel.operand)
        factor = self.fitted.group_cost if kernel.grouped else 1.0
        found = {"memory": factor * self._reading_us(stored)}
        if kernel.column_tile:
            under_way = outputs / kernel.column_tile * kernel.stream_bytes
            found["waiting"] = factor * stored * self.fitted.latency_us / under_way
        return found | {"multiplying": 2e6 * rows * outputs * inputs / peak}

    def _reading_us(self, n_bytes: float) -> float:
        return 1e6 * n_bytes / (self.fitted.memory_share * self.device.bytes_per_s)

    @property
    def _whole(self) -> Kernel:
        """What multiplies weights that nobody rounds."""
        return self.kernels["FP16"]

    @property
    def layer_weights(self) -> int:
        """Weights in the matrix products of all layers."""
        return self.shape.layers * sum(R * C for R, C in self.shape.matrices.values())

    def parts(self, kernel: Kernel, n_rows: int = 1) -> dict[str, float]:
        """us of a pass over n rows, by what holds it up: memory, waiting, multiplying, layers."""
        shape = self.shape
        told = dict.fromkeys(("memory", "waiting", "multiplying"), 0.0)
        products = [(kernel, sizes, shape.layers) for sizes in shape.matrices.values()]
        for one, sizes, times in [*products, (self._whole, (shape.vocab, shape.hidden), 1)]:
            needs = self.needs(one, *sizes, n_rows)
            longest = max(needs, key=needs.get)
            told[longest] += times * needs[longest]
        stored = 2 * CONTEXT * 2 * shape.kv_heads * shape.head_dim
        told["memory"] += shape.layers * self._reading_us(stored)
        beside = self.fitted.layer_us + self.fitted.row_us * (n_rows - 1)
        return told | {"layers": shape.layers * beside}

    def pass_us(self, kernel: Kernel, n_rows: int = 1) -> float:
        """us of a pass over n rows."""
        return sum(self.parts(kernel, n_rows).values())

    def draft_us(self, depth: int, vocabulary: int | None = None) -> float:
        """us of an EAGLE-2 head's draft, one pass a level.

        What is not a product counts as two layers: the head's own, and top-k with the tree.

        Args:
            vocabulary: rows of its output layer; None: the model's.
        """
        hidden, sizes = self.shape.hidden, list(self.shape.matrices.values())
        sizes += [(hidden, 2 * hidden), (vocabulary or self.shape.vocab, hidden)]
        products = [max(self.needs(self._whole, *size, _TOP_K).values()) for size in sizes]
        return depth * (sum(products) + 2 * self.fitted.layer_us)

    def gain(self, kernel: Kernel, rows: int, depth: int, emitted: float) -> float:
        """Speed-up over plain decoding when `rows` are verified a round and `emitted` come out."""
        cycle = self.draft_us(depth) + self.pass_us(kernel, rows)
        return emitted * self.pass_us(kernel) / cycle


def mean_emitted(accept: float, depth: int) -> float:
    """Tokens a round emits when each further level is accepted with one probability."""
    return sum(accept**level for level in range(depth + 1))


def engine_of(numbers: dict, name: str, fitted: Fitted) -> Engine:
    """The engine of one of figure 1's columns."""
    column = numbers["columns"][name]
    return Engine(*_hardware(column["device"], column["model"]), fitted, numbers["kernels"])


@cache
def published() -> dict:
    """What was published, as in profiles/paper; not to be changed.

    Returns:
        columns, hierspec, verification, anchor, pair, replications: tables of specmquant.toml;
        kernels: `Kernel` by the paper's names of formats.
    """
    found = tomllib.loads(_shipped("kernels.toml"))
    kernels = {name: Kernel(**one) for name, one in found.items()}
    return tomllib.loads(_shipped("specmquant.toml")) | {"kernels": kernels}


@cache
def stored() -> Fitted:
    """The parameters as they ship; fitting again finds the same."""
    return Fitted(**json.loads(_shipped("fitted.json")))


@cache
def _hardware(device: str, model: str) -> tuple[Device, Shape]:
    return load(device), shape_of(model)


def _shipped(name: str) -> str:
    where = resources.files("hspec_profiles") / "paper" / name
    return where.read_text(encoding="utf-8")
