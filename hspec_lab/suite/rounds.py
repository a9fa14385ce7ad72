"""Part `rounds`: whole rounds of every method on models with real shapes, lengths replayed.

All methods of an item lie in memory together and take turns, a slice of rounds each, in shuffled
order; `speed_up` is plain decoding's time per token over a method's, slice by slice.  Weights are
made up, so how many tokens a round emits comes from a record, which every row names.  Phases are on
the device's clock, `gap` is what the host's clock of a slice has beyond them.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from time import perf_counter_ns

import numpy as np
import pandas as pd
import torch

from hspec_lab.runtime import DeviceChain, DeviceEagle2, DeviceLevel, DeviceRefine, Memory
from hspec_lab.runtime.clock import CudaClock
from hspec_lab.suite import accepted
from hspec_lab.suite.part import Bench, Part, Row, attempt
from hspec_lab.suite.shapes import make_head, make_model
from hspec_lab.terms import ROUND_PHASES
from hspec_lab.trace import Recorder

METHODS = ("ar", "chain", "eagle2", "hierspec", "narrow")
_PHASES = [f"{phase}_us" for phase in ROUND_PHASES]
COLUMNS = {
    "target": "str",
    "intermediate": "str",
    "lengths": "str",  # published or zoo
    "context": "int64",
    "method": "str",
    "source": "str",
    "rounds": "int64",
    "mean_emitted": "float64",
    "round_us": "float64",  # from here on medians and quartiles of slices
    "us_per_token": "float64",
    "low_us": "float64",
    "high_us": "float64",
    "speed_up": "float64",
    "low_speed_up": "float64",
    "high_speed_up": "float64",
    **dict.fromkeys(_PHASES, "float64"),  # of a round
    "note": "str",
}
SCHEME = "w4a16-g128"
INTERMEDIATE = {"llama-3-70b": "llama-3-8b", "llama-3-8b": "llama-3.2-1b", "tiny": "tiny"}
CONTEXT = 512
_SPARE = 512  # positions behind the context, for the rounds of a slice


@dataclass(frozen=True, slots=True)
class Sizes:
    """What every method is run with; the published settings by default."""

    draft_len: int = 6
    tree: tuple[int, int, int] = (24, 3, 10)  # nodes, depth, top-k on the target
    inner_tree: tuple[int, int, int] = (30, 3, 10)  # on the intermediate model
    at_least: int = 6
    narrow: int = 16  # nodes of hierspec's sequence with second choices
    slices: int = 10
    rounds: int = 24  # of a slice


TINY = Sizes(2, (6, 2, 3), (6, 2, 3), 2, narrow=6, slices=1, rounds=1)


def items(bench: Bench) -> list[Row]:
    if bench.tiny:
        return [_item("tiny", lengths, 40) for lengths in ("published", "zoo")]
    return [
        _item(target, lengths, CONTEXT)
        for lengths in ("published", "zoo")
        for target in ("llama-3-70b", "llama-3-8b")
    ]


def _item(target: str, lengths: str, context: int) -> Row:
    entries = {"target": target, "intermediate": INTERMEDIATE[target]}
    return entries | {"lengths": lengths, "context": context}


class Decoder:
    """One method on made-up models, and what a slice of it has shown.

    Args:
        build: (memory, recorder) -> the target's level.
        lengths: replayed at the target's level and the one below.
    """

    def __init__(self, bench: Bench, build: Callable, lengths, context: int):
        self.recorder = Recorder(CudaClock() if bench.on_cuda else None)
        self.bench, self.context = bench, context
        self.level: DeviceLevel = build(Memory(context + _SPARE, bench.device), self.recorder)
        if lengths is not None:
            _replay(self.level, lengths.target)
            if isinstance(self.level.drafter, DeviceRefine):
                _replay(self.level.drafter.level, lengths.intermediate)
        self.us_per_token: list[float] = []
        self.round_us: dict[int, float] = {}  # of each slice
        self.n_emitted = self.n_rounds = 0

    def slice(self, number: int, n_rounds: int, warmup: bool) -> None:
        """Run rounds from the same context on, as far as they fit."""
        level, recorder = self.level, self.recorder
        recorder.start_prompt(number, warmup)
        level.start_made_up(self.context)
        self.bench.settle()
        begun, n_emitted = perf_counter_ns(), 0
        for _ in range(n_rounds):
            recorder.begin_round(level.cache.kv_len)
            step = level.round()
            n_emitted += len(step.tokens)
            recorder.end_round(step.n_proposed, len(step.tokens) - 1, len(step.tokens))
        self.bench.settle()
        if not warmup:
            us = (perf_counter_ns() - begun) / 1e3
            self.us_per_token.append(us / n_emitted)
            self.round_us[number] = us / n_rounds
            self.n_per_slice = n_rounds
            self.n_emitted += n_emitted
            self.n_rounds += n_rounds

    def row(self, plain: "Decoder") -> Row:
        low, median, high = np.quantile(self.us_per_token, [0.25, 0.5, 0.75])
        ratios = np.divide(plain.us_per_token, self.us_per_token)
        least, middle, most = np.quantile(ratios, [0.25, 0.5, 0.75])
        round_us = float(np.median(list(self.round_us.values())))
        return {
            "rounds": self.n_rounds,
            "mean_emitted": self.n_emitted / self.n_rounds,
            "round_us": round_us,
            "us_per_token": median,
            "low_us": low,
            "high_us": high,
            "speed_up": middle,
            "low_speed_up": least,
            "high_speed_up": most,
        } | self._phases()

    def _phases(self) -> Row:
        """us of a round by phase, medians of slices; on the device's clock where there is one."""
        spans = self.recorder.tables()["spans"]
        spans = spans[~spans["warmup"] & (spans["round"] >= 0)]
        clock = "device_us" if self.bench.on_cuda else "duration_us"
        spent = spans.pivot_table(
            index="prompt", columns="phase", values=clock, aggfunc="sum", fill_value=0.0
        )
        spent /= self.n_per_slice
        spent["gap"] = pd.Series(self.round_us) - spent.sum(axis=1)
        found = spent.median().to_dict()
        return {f"{phase}_us": found.get(phase, 0.0) for phase in ROUND_PHASES}


def _replay(level: DeviceLevel, lengths: list[int]) -> None:
    device = level.memory.device
    numbers = torch.tensor(lengths, dtype=torch.int32, device=device)
    level.replay = numbers, torch.zeros(1, dtype=torch.int32, device=device)


def builders(bench: Bench, item: Row, sizes: Sizes) -> dict[str, Callable]:
    """Method -> (memory, recorder) -> the target's level; models are shared."""
    longest = item["context"] + _SPARE + 64
    target, small = (
        make_model(bench, item[name], SCHEME, longest) for name in ("target", "intermediate")
    )
    heads = [
        make_head(bench, item[name], over)
        for name, over in (("target", target), ("intermediate", small))
    ]

    def level(model, drafter, memory, recorder, name="target", phase="verify_target"):
        return DeviceLevel(model, drafter, memory, level=name, phase=phase, recorder=recorder)

    def eagle2(head, tree, memory, recorder):
        n, depth, k = tree
        rest = {"tree_size": n, "depth": depth, "top_k": k}
        return DeviceEagle2(head, memory, recorder=recorder, **rest)

    def chain(memory, recorder):
        rest = {"draft_len": sizes.draft_len, "level": "intermediate"}
        return DeviceChain(small, memory, recorder=recorder, **rest)

    def refine(memory, recorder, tree_size=None):
        head = eagle2(heads[1], sizes.inner_tree, memory, recorder)
        inner = level(small, head, memory, recorder, "intermediate", "verify_intermediate")
        return DeviceRefine(inner, sizes.at_least, tree_size)

    return {
        "ar": lambda *kept: level(target, None, *kept),
        "chain": lambda *kept: level(target, chain(*kept), *kept),
        "eagle2": lambda *kept: level(target, eagle2(heads[0], sizes.tree, *kept), *kept),
        "hierspec": lambda *kept: level(target, refine(*kept), *kept),
        "narrow": lambda *kept: level(target, refine(*kept, sizes.narrow), *kept),
    }


@torch.inference_mode()
def measure(bench: Bench, item: Row) -> list[Row]:
    sizes = TINY if bench.tiny else Sizes()
    found = getattr(accepted, {"published": "published", "zoo": "of_zoo"}[item["lengths"]])
    rows, decoders, sources = [], {}, {"ar": "nothing is drafted"}
    for method, build in builders(bench, item, sizes).items():
        lengths, note = (None, "") if method == "ar" else attempt(lambda m=method: found(m))
        if note:
            rows.append(item | {"method": method, "note": note})
            continue
        if lengths is not None:
            sources[method] = lengths.source
        # what one method cannot do on a device must not take the others' numbers along
        make = partial(_warmed, bench, build, lengths, item["context"], sizes)
        decoder, note = attempt(make)
        if note:
            rows.append(item | {"method": method, "note": note})
        else:
            decoders[method] = decoder
    if "ar" not in decoders:
        nothing = {"note": "plain decoding, which it would be compared with, failed"}
        return rows + [item | {"method": method} | nothing for method in decoders]
    _take_turns(decoders, sizes, bench)
    for method, decoder in decoders.items():
        named = {"method": method, "source": sources[method]}
        rows.append(item | named | decoder.row(decoders["ar"]))
    return rows


def _warmed(bench: Bench, build: Callable, lengths, context: int, sizes: Sizes) -> Decoder:
    """A decoder whose stages are compiled and captured."""
    decoder = Decoder(bench, build, lengths, context)
    # a stage is captured at its second call, and every bucket must have come up
    for _ in range(1 if bench.tiny else 3):
        decoder.slice(0, sizes.rounds, warmup=True)
    return decoder


def _take_turns(decoders: dict[str, Decoder], sizes: Sizes, bench: Bench) -> None:
    """Slices of all methods in shuffled order."""
    order = random.Random(bench.seed)
    for number in range(1, sizes.slices + 1):
        for method in order.sample(list(decoders), len(decoders)):
            decoders[method].slice(number, sizes.rounds, warmup=False)


PART = Part(
    name="rounds",
    answers="What does a token cost end to end, by method, and where does a round's time go?",
    columns=COLUMNS,
    items=items,
    measure=measure,
)
