"""Text drawn by rounds on the device follows the target, whatever is drafted.

Models are tables here (the next token depends on the last one alone), so that what the text must
follow is known exactly, and kernels are replaced by their definitions, so that thousands of texts
take seconds.  The seeds are fixed: what passes once passes always.
"""

import importlib
from functools import partialmethod
from operator import attrgetter
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from test_runtime import check_stages

from hspec_kernels.tree_rerank import DraftTree
from hspec_lab.model.fused import DeviceCache
from hspec_lab.runtime import DeviceChain, DeviceLevel, DeviceRefine, Dice, Memory, rule
from hspec_lab.runtime.offer import Offer

TEMPERATURE = 0.5
N_TEXTS, N_TOKENS = 800, 6
# token 0 is the prompt and is followed by 1; what may follow then is the matter
TARGET = [[0, 1, 0, 0], [0.3, 0, 0.2, 0.5], [0.1, 0.2, 0.6, 0.1], [0.25, 0.45, 0.2, 0.1]]
SMALL = [[0, 0.5, 0.5, 0], [0.1, 0.1, 0.6, 0.2], [0.4, 0.3, 0.1, 0.2], [0.05, 0.15, 0.2, 0.6]]
KERNELS = ["append_verdict", "kv_commit", "head_topk"] + [
    f"accept_{kind}_tree" for kind in ("greedy", "sample", "drawn")
]
METHODS = ["ar", "chain", "tree", "hierspec", "hierspec, greedy inside", "deeper"]


class Table:
    """A model that says after token t what row t of a table says, at `TEMPERATURE`."""

    dtype, folder = torch.float32, Path("table")

    def __init__(self, probabilities: list[list[float]], device: str):
        self.table, self.device = TEMPERATURE * torch.tensor(probabilities).log().to(device), device
        self.n_known = len(probabilities)
        self.shape = SimpleNamespace(hidden=1)

    def new_cache(self, capacity: int) -> DeviceCache:
        return DeviceCache(1, 1, 2, capacity, self.dtype, self.device)

    def read(self, tokens: list[int], cache: DeviceCache) -> torch.Tensor:
        cache.commit(list(range(len(tokens))))
        return self.run(torch.tensor(tokens, device=self.device), None, None, cache)

    def run(self, ids, depths, ancestors, cache) -> torch.Tensor:
        return ids[:, None].to(self.dtype)

    def lm_head(self, features) -> torch.Tensor:
        # text behind a draft is whatever lies there
        return self.table.index_select(0, features[:, 0].long().clamp(0, self.n_known - 1))

    logits = lm_head


class FixedTree:
    """A drafter that always chooses the same tree: two tokens, and two more behind the first."""

    level, longest, p_draft = "head", 3, None

    def __init__(self, memory: Memory):
        self.memory = memory
        nodes = [[0, 2, 3, 1, 2, 0, 0, 0], [-1, 0, 0, 1, 1, -1, -1, -1]]  # three are padding
        tokens, parents = torch.tensor(nodes, dtype=torch.int32, device=memory.device)
        self.tree = DraftTree(tokens, parents, None, None)

    def attach(self, level: DeviceLevel) -> None:
        self.above = level

    def propose(self) -> Offer:
        pending = self.above.state.n_text - 1
        self.tree.tokens[:1] = self.memory.text.index_select(0, pending)
        return Offer(5, self.tree, self.longest)

    def prepare(self) -> None: ...

    def follow(self, agreed) -> None: ...

    def followed(self, agreed: int) -> None: ...

    def sources_of(self, accepted: list[int]) -> list[str]:
        return [self.level] * len(accepted)


def decoder(method: str, device: str = "cpu") -> DeviceLevel:
    memory = Memory(64, device, Dice(0, device, size=64))

    def level(table, drafter=None, temperature: float = TEMPERATURE) -> DeviceLevel:
        names = {"level": "any", "phase": "verify_target", "temperature": temperature}
        return DeviceLevel(Table(table, device), drafter, memory, **names)

    def chain() -> DeviceChain:
        rest = {"draft_len": 2, "level": "small", "temperature": TEMPERATURE}
        return DeviceChain(Table(SMALL, device), memory, **rest)

    def refine(drafter, at_least: int, temperature: float = TEMPERATURE) -> DeviceRefine:
        return DeviceRefine(level(SMALL, drafter, temperature), at_least)

    drafters = {
        "ar": lambda: None,
        "chain": chain,
        "tree": lambda: FixedTree(memory),
        "hierspec": lambda: refine(FixedTree(memory), 2),
        "hierspec, greedy inside": lambda: refine(FixedTree(memory), 2, 0.0),
        "deeper": lambda: DeviceRefine(level(TARGET[::-1], refine(FixedTree(memory), 1)), 2),
    }
    return level(TARGET, drafters[method]())


@pytest.fixture
def definitions(monkeypatch):
    """Kernels give way to their definitions; that both do the same is tested at each kernel."""

    def by(ref):
        def operation(*args, out=None, trusted=False, **kwargs):
            results = ref(*args, **kwargs)
            for tensor, result in zip(out or (), results or (), strict=False):
                tensor.copy_(result)
            return results

        return operation

    for name in KERNELS:
        module = importlib.import_module(f"hspec_kernels.{name}")
        monkeypatch.setattr(module, name, by(getattr(module, f"{name}_ref")))


def text(level: DeviceLevel, prompt: int, n_tokens: int) -> list[int]:
    """Tokens behind the prompt's only one, drawn with the numbers of one prompt."""
    level.memory.dice.begin(prompt)
    with torch.inference_mode():
        tokens = list(level.start([0]).tokens)
        while len(tokens) < n_tokens:
            tokens += level.round().tokens
    return tokens[:n_tokens]


def chi_square(method: str) -> float:
    """How far the pairs of neighbours in all texts are from the target's own; 8 is to be expected.

    Behind a token every next one counts, as often as the target says it; with a certain next token
    behind 0, and an impossible one behind 1, what is free is 2 + 3 + 3 numbers.
    """
    level, table = decoder(method), torch.tensor(TARGET)
    found = torch.zeros_like(table)
    for prompt in range(N_TEXTS):
        tokens = text(level, prompt, N_TOKENS)
        for before, after in zip(tokens, tokens[1:], strict=False):
            found[before, after] += 1
    wanted = found.sum(dim=1, keepdim=True) * table
    assert not found[wanted == 0].any()
    return float(((found - wanted) ** 2 / wanted)[wanted > 0].sum())


# of a chi-square variable with 8 degrees of freedom one in 10,000 is above 32
@pytest.mark.parametrize("method", METHODS)
def test_pairs_of_tokens_follow_the_target(definitions, method):
    assert chi_square(method) < 32


def rows_at_another_temperature(monkeypatch):
    right = rule.distribution
    monkeypatch.setattr(rule, "distribution", lambda logits, t: right(logits, 2 * t))


def prefill_row_elsewhere(monkeypatch):
    right = rule.Sampling.first
    wrong = partialmethod(lambda self, features, position: right(self, features, position + 1))
    monkeypatch.setattr(rule.Sampling, "first", wrong)


def residual_forgotten(monkeypatch):
    module = importlib.import_module("hspec_kernels.accept_drawn_tree")
    right = module.accept_drawn_tree

    def wrong(logits, tokens, parents, u, temperature, p_draft, *, out, trusted):
        right(logits, tokens, parents, u, temperature, p_draft, out=out)
        last = int(out[1]) - 1
        p = torch.softmax(logits[out[0][last]] / temperature, dim=0)
        out[2][last] = int((p.cumsum(0) > u[0]).int().argmax())

    monkeypatch.setattr(module, "accept_drawn_tree", wrong)


def a_number_taken_twice(monkeypatch):
    monkeypatch.setattr(Dice, "take", lambda self, n: self.block[:1].expand(n).contiguous())


BROKEN = {
    "rows at another temperature": (rows_at_another_temperature, "chain"),
    "rows at another temperature, hierspec": (rows_at_another_temperature, "hierspec"),
    "the prefill's row elsewhere": (prefill_row_elsewhere, "hierspec"),
    "the residual forgotten": (residual_forgotten, "chain"),
    "a number taken twice": (a_number_taken_twice, "tree"),
}


@pytest.mark.parametrize("broken, method", BROKEN.values(), ids=BROKEN)
def test_a_broken_rule_shows_in_the_pairs(definitions, monkeypatch, broken, method):
    broken(monkeypatch)
    assert chi_square(method) > 64


@pytest.mark.parametrize("method", ["ar", "chain", "tree", "hierspec"])
def test_a_stage_that_draws_launches_the_same_every_time(method, device, monkeypatch):
    level = decoder(method, device)
    check_stages(level, monkeypatch)
    dice = level.memory.dice
    assert dice.left == len(dice.block) - int(dice.cursor)  # as many as the host counts


@pytest.mark.parametrize(
    "method, whose",
    [
        ("ar", "model"),
        ("tree", "model"),
        ("chain", "drafter.model"),
        ("hierspec", "drafter.level.model"),
    ],
)
def test_rows_without_a_distribution_are_refused(method, whose, device):
    level = decoder(method, device)
    with torch.inference_mode():
        level.start([0])
        attrgetter(whose)(level).table.fill_(torch.nan)
        with pytest.raises(ValueError, match="NaN or infinity in the logits of this model or of"):
            level.round()


@pytest.mark.parametrize("method", ["chain", "tree"])
def test_recorded_lengths_hold_at_a_temperature_too(method, device):
    level = decoder(method, device)
    lengths = torch.tensor([3, 1], dtype=torch.int32, device=device)
    level.replay = lengths, level.memory.int32(1)
    with torch.inference_mode():
        level.start([0])
        # all accepted of a chain leaves two tokens to catch up on: a round without a draft
        rounds = [level.round() for _ in range(3)]
    assert [len(step.tokens) for step in rounds if step.n_proposed][:2] == [3, 1]
