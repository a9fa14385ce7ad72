"""Models with real shapes and made-up weights, as the suite's parts need them."""

import gc
import json
import tempfile
from functools import lru_cache
from pathlib import Path

from hspec_lab.measure import load
from hspec_lab.model.fused import FusedHead
from hspec_lab.model.synthetic import SyntheticCheckpoint
from hspec_lab.suite.part import Bench

_TINY = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 128,
    "intermediate_size": 128,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "vocab_size": 64,
    "max_position_embeddings": 4096,
}


@lru_cache(maxsize=1)
def tiny_shape() -> str:
    """A shape that the interpreter can run; its folder lives as long as the process."""
    tiny_shape.folder = tempfile.TemporaryDirectory()
    (Path(tiny_shape.folder.name) / "config.json").write_text(json.dumps(_TINY))
    return tiny_shape.folder.name


def make_model(bench: Bench, shape: str, scheme: str, context: int, row_invariant: bool = False):
    """A `FusedTransformer` of a shape, `context` positions long."""
    # decoders of earlier items are cycles, which would keep their models in the device's memory
    gc.collect()
    where = tiny_shape() if bench.tiny else shape
    return load(
        f"shape:{where}@{scheme}",
        context,
        bench.device,
        row_invariant=row_invariant,
        kernels=True,
        dtype=bench.dtype,
    )


def make_head(bench: Bench, shape: str, over, scheme: str = "w16a16") -> FusedHead:
    """A draft head over a model of the same shape."""
    where = tiny_shape() if bench.tiny else shape
    return FusedHead(SyntheticCheckpoint(where, over.shape.context, bench.device), scheme, over)
