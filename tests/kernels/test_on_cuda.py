"""What only a CUDA device can show: stages are captured, and replaying them is decoding.

The other tests of this folder run there too, compiled and in both 16-bit types.
"""

import pytest
import torch
from test_runtime import METHODS, Pair

from hspec_lab.config import Chain, Config, Eagle2, Refine
from hspec_lab.experiment import measure
from hspec_lab.runtime.clock import CudaClock
from hspec_lab.runtime.stage import Stage
from hspec_lab.store import read_run
from hspec_lab.trace import Recorder

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    return Pair(tmp_path_factory.mktemp("models"), "cuda")


@pytest.fixture
def stages(monkeypatch):
    """Every stage that is made from now on."""
    made, init = [], Stage.__init__

    def note(stage, *what):
        init(stage, *what)
        made.append(stage)

    monkeypatch.setattr(Stage, "__init__", note)
    return made


@pytest.mark.parametrize("method", METHODS)
def test_replayed_stages_emit_the_plain_greedy_text(pair, method, stages):
    def text(decoder, n=30):
        with torch.inference_mode():
            found = list(decoder.start([1, 2, 3]).tokens)
            while len(found) < n:
                found += decoder.round().tokens
        return found[:n]

    decoder = pair.on_device(method)
    assert text(decoder) == text(pair.on_device("ar"))
    assert sum(stage.captured for stage in stages) >= 2
    # from the start once more, now with nothing but replays
    assert text(decoder) == text(pair.on_device("ar"))


def test_the_devices_clock_accounts_for_a_round(pair):
    recorder = Recorder(CudaClock())
    decoder = pair.on_device("eagle2", recorder)
    with torch.inference_mode():
        for prompt in range(3):
            recorder.start_prompt(prompt, warmup=prompt < 2)
            decoder.start([1, 2, 3])
            for _ in range(4):
                recorder.begin_round(decoder.cache.kv_len)
                step = decoder.round()
                recorder.end_round(step.n_proposed, len(step.tokens) - 1, len(step.tokens))
    spans = recorder.tables()["spans"].query("not warmup and round >= 0")
    assert (spans["device_us"] > 0).all()


@pytest.mark.parametrize("format", ["w4a16-g128", "w8a8", "w16a16"])
def test_configs_on_cuda_run_and_leave_the_greedy_text_as_it_is(format, tmp_path):
    tree = Eagle2(tree_size=12, depth=3, top_k=4)
    small = f"zoo:intermediate@{format}"
    drafts = {
        "ar": None,
        "chain": Chain(small, draft_len=4),
        "eagle2": tree,
        "hierspec": Refine(small, tree, at_least=4),
        "narrow": Refine(small, tree, at_least=4, tree_size=16),
    }
    outputs = {}
    for method, draft in drafts.items():
        config = Config(
            target=f"zoo:target@{format}",
            draft=draft,
            n_prompts=2,
            max_new_tokens=48,
            device="cuda",
            row_invariant=True,
        )
        head, tables = read_run(measure(config, tmp_path))
        outputs[method] = head["outputs"]
        assert head["environment"]["gpu"] == torch.cuda.get_device_name()
        assert tables["spans"]["device_us"].notna().all()
    assert all(text == outputs["ar"] for text in outputs.values())
