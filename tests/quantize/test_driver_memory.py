"""What quantizing takes beside the model's own bytes, measured in a process of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SIZES = {
    "hidden_size": 768,
    "intermediate_size": 2304,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "num_key_value_heads": 12,
    "vocab_size": 64,
    "max_position_embeddings": 64,
}
CHILD = """
import json, sys
from pathlib import Path

sys.path[:0] = [sys.argv[1]]
import torch
from small import SIZES as SMALL, small, text
from hspec_lab import zoo
from hspec_lab.model import Checkpoint
from hspec_lab.model.checkpoint import UNITS
from hspec_lab.quant.forms import rounded
from hspec_lab.quantize import driver, quantize
from hspec_lab.quantize.layers import Walk, read_layer
from hspec_lab.scheme import parse

def peak():
    # of this program alone; what getrusage says includes the one that started it
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.partition("VmHWM:")[2].split()[0])

zoo.held_out = lambda part: [text(512)]
layer = Checkpoint(Path(sys.argv[2]) / "dummy")
walk = Walk(layer, layer.tensor("model.embed_tokens.weight"), [list(range(64))])
walk.advance(read_layer(layer, 0))
del walk, layer
before = peak()
quantize(f"{sys.argv[2]}/wide@{sys.argv[3]}")
print(json.dumps([before, peak()]))
"""


@pytest.mark.slow
def test_no_more_than_the_model_and_three_layers_are_in_memory(tmp_path):
    from small import small

    small(tmp_path / "wide", **(SIZES | {"head_dim": 64}))
    small(tmp_path / "dummy", **(SIZES | {"head_dim": 64, "num_hidden_layers": 1}))
    n_bytes = (tmp_path / "wide" / "model.safetensors").stat().st_size
    layer = n_bytes / SIZES["num_hidden_layers"]
    words = [sys.executable, "-W", "ignore", "-c", CHILD, str(Path(__file__).parent), str(tmp_path)]
    given = os.environ | {"HSPEC_MODELS": str(tmp_path / "shelf"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*words, "w4a16-g128+gptq"], env=given, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    before, after = json.loads(done.stdout.splitlines()[-1])
    # a layer at a time is read; most of what is there are three fp64 matrices, the factor of
    # the widest unit's Hessian, which do not grow with the number of layers
    took, limit = after - before, n_bytes + 3 * layer
    assert took <= limit, (
        f"{took / 1e6:.0f} MB above {before / 1e6:.0f} MB, limit {limit / 1e6:.0f}: "
        f"model {n_bytes / 1e6:.0f}, layer {layer / 1e6:.0f} MB"
    )
