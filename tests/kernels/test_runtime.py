"""Rounds on the device: the rounds of the host's loop, by stages that are the same every time."""

import sys
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from launches import Launches
from safetensors.torch import load_file, save_file
from tiny import FAMILIES, make_head, make_model

from hspec_lab.config import Config, Eagle2, Refine
from hspec_lab.draft import Eagle2Drafter, RefineDrafter
from hspec_lab.model import Checkpoint
from hspec_lab.model.fused import FusedHead, FusedTransformer
from hspec_lab.pipeline import check
from hspec_lab.runtime import DeviceChain, DeviceEagle2, DeviceLevel, DeviceRefine, Dice, Memory
from hspec_lab.runtime.memory import Report
from hspec_lab.runtime.stage import BUCKETS, Stage, bucket_of
from hspec_lab.trace import Recorder
from hspec_lab.verify import Verifier

CAPACITY = 64
# of twelve tokens a tree holds many, so that some of a random head's are accepted
TINY = FAMILIES["llama"] | {"head_dim": 16, "vocab_size": 12, "num_hidden_layers": 1}
TREE = {"tree_size": 10, "depth": 2, "top_k": 4}
METHODS = [
    "ar",
    "chain",
    "chain of itself",
    "eagle2",
    "hierspec",
    "hierspec of itself",
    "deeper",
    "narrow",
]


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Pair:
    """The same decoder twice: its rounds driven by the host, and on the device."""

    def __init__(self, folder: Path, device: str):
        self.device = device
        self.models = [self.model(folder / f"m{seed}", seed) for seed in (0, 1)]
        self.models.append(self.wavering(folder / "m2"))
        self.heads = [self.head(model) for model in self.models]

    def wavering(self, folder: Path) -> FusedTransformer:
        """Model 0 with noise on its output: what it says second is often what model 0 says."""
        make_model(folder, seed=0, **TINY)
        tensors = load_file(folder / "model.safetensors")
        noise = torch.randn(tensors["lm_head.weight"].shape, generator=seeded(3))
        tensors["lm_head.weight"] += 0.25 * noise
        save_file(tensors, folder / "model.safetensors")
        return self.opened(folder)

    def model(self, folder: Path, seed: int) -> FusedTransformer:
        make_model(folder, seed=seed, **TINY)
        return self.opened(folder)

    def opened(self, folder: Path) -> FusedTransformer:
        options = {"device": self.device, "dtype": torch.float16, "row_invariant": True}
        return FusedTransformer(Checkpoint(folder), "w8a16", **options)

    def head(self, model: FusedTransformer) -> FusedHead:
        folder = model.folder.with_name(model.folder.name + "-eagle2")
        return FusedHead(Checkpoint(make_head(folder, model.folder)), "w8a16", model)

    def by_host(self, method: str, temperature: float = 0.0, choose=None) -> Verifier:
        def level(i: int, drafter=None, name="target", sampling: bool = True):
            rest = {"phase": "verify_target", "temperature": temperature, "choose": choose}
            rest |= {"capacity": CAPACITY, "sampling": sampling}
            return Verifier(self.models[i], drafter, level=name, **rest)

        def eagle2(i: int):
            return Eagle2Drafter(self.heads[i], capacity=CAPACITY, **TREE)

        def refine(i: int, drafter, at_least: int, tree_size=None, **kind):
            return RefineDrafter(level(i, drafter, "intermediate", **kind), at_least, tree_size)

        return level(
            0,
            {
                "ar": lambda: None,
                "chain": lambda: refine(1, None, 2),
                "chain of itself": lambda: refine(0, None, 2),
                "eagle2": lambda: eagle2(0),
                "hierspec": lambda: refine(1, eagle2(1), 2),
                "greedy inside": lambda: refine(1, eagle2(1), 2, sampling=False),
                "hierspec of itself": lambda: refine(0, eagle2(0), 3),
                "deeper": lambda: refine(0, refine(1, eagle2(1), 1), 3),
                "narrow": lambda: refine(2, eagle2(2), 2, tree_size=8, sampling=False),
            }[method](),
        )

    def on_device(
        self, method: str, recorder=None, temperature: float = 0.0, dice: Dice | None = None
    ) -> DeviceLevel:
        memory = Memory(CAPACITY, self.device, dice)
        kept = {} if recorder is None else {"recorder": recorder}

        def level(i: int, drafter=None, name="target", phase="verify_target", sampling=True):
            rest = {"level": name, "phase": phase, "temperature": sampling * temperature}
            return DeviceLevel(self.models[i], drafter, memory, **rest, **kept)

        def eagle2(i: int):
            return DeviceEagle2(self.heads[i], memory, **TREE, **kept)

        def chain(i: int):
            rest = {"draft_len": 2, "level": "intermediate", "temperature": temperature}
            return DeviceChain(self.models[i], memory, **rest, **kept)

        def refine(i: int, drafter, at_least: int, tree_size=None, **kind):
            inner = level(i, drafter, "intermediate", "verify_intermediate", **kind)
            return DeviceRefine(inner, at_least, tree_size)

        return level(
            0,
            {
                "ar": lambda: None,
                "chain": lambda: chain(1),
                "chain of itself": lambda: chain(0),
                "eagle2": lambda: eagle2(0),
                "hierspec": lambda: refine(1, eagle2(1), 2),
                "greedy inside": lambda: refine(1, eagle2(1), 2, sampling=False),
                "hierspec of itself": lambda: refine(0, eagle2(0), 3),
                "deeper": lambda: refine(0, refine(1, eagle2(1), 1), 3),
                "narrow": lambda: refine(2, eagle2(2), 2, tree_size=8, sampling=False),
            }[method](),
        )


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return Pair(tmp_path_factory.mktemp("models"), device)


def steps(decoder, n_rounds: int, prompt=(1, 2, 3)) -> list:
    with torch.inference_mode():
        return [decoder.start(list(prompt)), *(decoder.round() for _ in range(n_rounds))]


@pytest.mark.parametrize("method", METHODS)
def test_rounds_are_those_of_the_hosts_loop(pair, method):
    wanted, found = pair.by_host(method), pair.on_device(method)
    for prompt in [(1, 2, 3), (5, 7)]:  # the second finds the memory as the first has left it
        for ours, theirs in zip(steps(found, 4, prompt), steps(wanted, 4, prompt), strict=True):
            assert ours.tokens == theirs.tokens
            assert ours.sources == theirs.sources or "itself" in method
            assert ours.n_proposed == theirs.n_proposed
        assert found.tokens == wanted.tokens and found.cache.kv_len == wanted.cache.kv_len


def test_rivals_are_kept_now_and_then(pair):
    """The comparison above would prove little of narrow trees if only first choices were kept."""
    host = pair.by_host("narrow")
    rivals = 0
    for prompt in [(1, 2, 3), (5, 7), (9, 4, 4, 2)]:
        with torch.inference_mode():
            host.start(list(prompt))
            for _ in range(3):
                proposal = host.drafter.propose()
                with patch.object(host.drafter, "propose", return_value=proposal):
                    step = host.round()
                drafted = proposal.tree.tokens[1:]
                n = len(step.tokens) - 1
                rivals += step.tokens[:n] != drafted[:n]
    assert rivals >= 2


@pytest.mark.parametrize("method", METHODS)
def test_the_device_knows_what_the_host_knows(pair, method):
    decoder = pair.on_device(method)
    steps(decoder, 3)
    level = decoder
    while True:
        n = len(level.tokens)
        assert int(level.state.n_text) == n
        assert int(level.state.kv_len) == level.cache.kv_len
        assert level.memory.text[:n].tolist() == level.tokens
        drafter = level.drafter
        if isinstance(drafter, DeviceEagle2 | DeviceChain):
            assert int(drafter.cache.kv_len_on_device) == drafter.cache.kv_len
        if not isinstance(drafter, DeviceRefine):
            break
        level = drafter.level


def check_stages(decoder: DeviceLevel, monkeypatch) -> None:
    """What a CUDA graph needs: no launch depends on a value, a counter of the host, or a read."""
    seen, reads = {}, []

    def run(stage):
        with Launches() as launches:
            stage._launches()
        seen.setdefault(stage, []).append(launches.log)

    read = Report.read
    monkeypatch.setattr(Report, "read", lambda *what: reads.append(1) or read(*what))
    with torch.inference_mode():
        decoder.start([1, 2, 3])
        monkeypatch.setattr(Stage, "__call__", run)
        inner_rounds, n_rounds = [], 3
        if isinstance(decoder.drafter, DeviceRefine):
            inner = decoder.drafter.level
            inner_round = inner.round
            inner.round = lambda: inner_rounds.append(1) or inner_round()
        for _ in range(n_rounds):
            decoder.round()
    assert any(len(logs) > 1 for logs in seen.values())
    for logs in seen.values():
        assert logs[0]
        for log in logs[1:]:
            assert log == logs[0]
    assert len(reads) == n_rounds + len(inner_rounds)  # one for each round of each level
    assert bool(inner_rounds) == isinstance(decoder.drafter, DeviceRefine)


@pytest.mark.parametrize(
    "method", ["ar", "chain of itself", "eagle2", "hierspec of itself", "narrow"]
)
def test_a_stage_launches_the_same_every_time_and_waits_for_nothing(pair, method, monkeypatch):
    check_stages(pair.on_device(method), monkeypatch)


def test_phases_are_recorded_at_every_level(pair):
    recorder = Recorder()
    decoder = pair.on_device("hierspec of itself", recorder)
    with torch.inference_mode():
        recorder.start_prompt(0)
        decoder.start([1, 2, 3])
        recorder.begin_round(decoder.cache.kv_len)
        step = decoder.round()
        recorder.end_round(step.n_proposed, len(step.tokens) - 1, len(step.tokens))
    spans = recorder.tables()["spans"]
    in_round = spans[spans["round"] == 0]
    assert set(zip(in_round["phase"], in_round["level"], strict=True)) == {
        ("draft", "head"),
        ("verify_intermediate", "intermediate"),
        ("accept", "intermediate"),
        ("kv_commit", "intermediate"),
        ("verify_target", "target"),
        ("accept", "target"),
        ("kv_commit", "target"),
    }
    committed = in_round[(in_round["phase"] == "kv_commit") & (in_round["level"] == "target")]
    assert committed["n_tokens"].tolist() == [len(step.tokens)]


def test_logits_without_a_distribution_are_refused(pair):
    decoder = pair.on_device("ar")
    steps(decoder, 1)
    kept = pair.models[0].norm.clone()
    pair.models[0].norm.fill_(torch.nan)
    try:
        with torch.inference_mode(), pytest.raises(ValueError, match="NaN or infinity in the log"):
            decoder.round()
    finally:
        pair.models[0].norm.copy_(kept)


def test_rows_are_padded_to_buckets():
    assert [bucket_of(n) for n in (1, 2, 3, 9, 17, 60, 128, 129, 200)] == [
        1, 2, 4, 16, 24, 64, 128, 192, 256,
    ]  # fmt: skip
    assert all(bucket_of(bucket) == bucket for bucket in BUCKETS)


def test_a_level_draws_its_room_from_the_text_it_is_given(pair):
    with pytest.raises(ValueError, match="a prompt of 64 tokens does not fit a text of 64"):
        pair.on_device("ar").start(list(range(64)))


@pytest.mark.parametrize(
    "draft, message",
    [
        (Eagle2(top_k=33), "top_k is at most 32 on cuda"),
        (Eagle2(tree_size=257), "tree_size is at most 256 on cuda"),
        (Eagle2(depth=20, top_k=30), r"\(depth - 1\) \* top_k is at most 512 on cuda"),
        (Refine("zoo:intermediate@w8a16", Eagle2(), tree_size=65), "at most 64 nodes, got"),
        (Eagle2(head="zoo:target-eagle2@fp32"), "fp32 has no fast operator on cuda"),
    ],
)
def test_what_the_device_cannot_hold_is_refused_before_loading(draft, message, monkeypatch):
    monkeypatch.setattr("hspec_lab.pipeline._check_device", lambda device: None)
    config = Config(target="zoo:target@w4a16-g128", draft=draft, device="cuda")
    with pytest.raises(ValueError, match=message):
        check(config)
    check(replace(config, draft=Eagle2()))
