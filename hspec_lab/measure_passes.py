"""Time forward passes: all that is compared takes turns, in shuffled order.

A pass is what verification runs: a token tree behind stored tokens, and the logits of every row.
The one-token pass is run several times in every turn, so that each time can be put in units of a
firm one measured beside it.

On a warm cache one model is run again and again, and what of it fits the processor's caches stays
there.  In a real round other models run in between, so a small model's weights have left the cache
when its turn comes: a cold pass, before which other memory was read, is nearer to that.  What a
round really costs is neither, see `measure_rounds`.
"""

import random
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from hspec_lab.runtime.memory import Memory, State
from hspec_lab.suite.clock import time_interleaved
from hspec_lab.suite.part import Bench
from hspec_lab.tree import Tree, ancestor_bitsets, from_parents

WARMUP_TURNS = 2
# one-token passes in a turn of many rows: at least so many, and one to so many of the others
_LEAST_PLAIN, _OTHERS_A_PLAIN = 4, 8
_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")


def bushy(n: int) -> Tree:
    """A tree of n nodes, two children each, so that masks are real ones."""
    return from_parents([0] * n, [-1, *((node - 1) // 2 for node in range(1, n))])


def cache_bytes() -> int:
    """Bytes of the processor's largest cache; 64 MiB where the system does not tell."""
    try:
        sizes = [path.read_text().strip() for path in _CACHES.glob("index*/size")]
        return max(int(size.removesuffix("K")) << 10 for size in sizes)
    except (OSError, ValueError):
        return 64 << 20


def n_plain(n_rows: int) -> int:
    """How many one-token passes a turn of so many rows has."""
    return max(_LEAST_PLAIN, n_rows // _OTHERS_A_PLAIN)


@torch.inference_mode()
def curve_of_turns(
    model,
    context: int,
    rows: Sequence[int],
    *,
    repeats: int,
    seed: int = 0,
    cold: bool = False,
    tell: Callable[[int], None] = lambda turn: None,
) -> tuple[np.ndarray, np.ndarray]:
    """Time passes of each n on the host's clock.

    Args:
        model: a `Transformer` on a CPU.
        cold: read other memory, twice the largest cache, before every pass.
        tell: called with the number of each turn, those that warm up included.

    Returns:
        us of every turn, [repeats, len(rows)], and of its one-token passes, [repeats, n].
    """
    run = _passes(model, context, rows, seed)
    other = torch.zeros(2 * cache_bytes() // 4) if cold else None
    plain = [1] * n_plain(len(rows))
    order, times = random.Random(seed), np.zeros((repeats, len(rows) + len(plain)))
    what = [*rows, *plain]
    for turn in range(WARMUP_TURNS + repeats):
        tell(turn)
        for i in order.sample(range(len(what)), len(what)):
            if other is not None:
                other.sum()
            begun = time.perf_counter_ns()
            run[what[i]]()
            times[max(0, turn - WARMUP_TURNS), i] = time.perf_counter_ns() - begun
    return times[:, : len(rows)] / 1e3, times[:, len(rows) :] / 1e3


def _passes(model, context: int, rows: Sequence[int], seed: int) -> dict[int, Callable]:
    """What to call for n rows, n = 1 always among them."""
    cache = model.new_cache(context + max(rows))
    generator = torch.Generator().manual_seed(seed)
    cache.fill_noise(generator)
    cache.kv_len = context
    tokens = torch.randint(0, model.shape.vocab, (max(rows),), generator=generator).tolist()

    def run(n: int, tree: Tree) -> None:
        model.logits(model.forward(tokens[:n], cache, tree))

    return {n: partial(run, n, bushy(n)) for n in {1, *rows}}


@torch.inference_mode()
def curve_of_graphs(model, context: int, rows: Sequence[int], bench: Bench, beside=None):
    """Time verifications of each n, each one graph.

    Args:
        model: a `FusedTransformer`.
        bench: how often; off CUDA the launches run one by one.
        beside: something else to call in the same turns.

    Returns:
        (median, lower quartile, upper quartile) us of every n, and of `beside`.
    """
    memory = Memory(context + max(rows) + 1, model.device)
    state = State(model, memory)
    generator = torch.Generator(device=model.device).manual_seed(bench.seed)
    state.cache.fill_noise(generator)
    state.stand_at(context)
    stages = {str(n): memory.stage(partial(_verify, state, *_tree(n, model.device))) for n in rows}
    calls = stages if beside is None else stages | {"beside": beside}
    times = time_interleaved(calls, bench)
    return [times[str(n)] for n in rows], times.get("beside")


def _tree(n: int, device) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens int32 [n], depths int32 [n] and ancestors int64 [n, W] of a bushy tree."""
    tree = bushy(n)
    seen = torch.from_numpy(ancestor_bitsets(tree).view(np.int64).copy())
    tokens, depths = (torch.tensor(x, dtype=torch.int32) for x in (tree.tokens, tree.depths))
    return tokens.to(device), depths.to(device), seen.to(device)


def _verify(state: State, tokens: Tensor, depths: Tensor, ancestors: Tensor) -> None:
    """Launches: what a level does with a tree, but for the verdict."""
    state.best(state.model.run(tokens, depths, ancestors, state.cache))


def read_bandwidth(threads: int, n_bytes: int = 1 << 28, repeats: int = 9) -> float:
    """GB/s of reading memory once, summing as it comes: the ceiling of a one-token pass."""
    torch.set_num_threads(threads)
    block, times = torch.ones(n_bytes // 4), []
    for _ in range(repeats):
        begun = time.perf_counter_ns()
        block.sum()
        times.append(time.perf_counter_ns() - begun)
    return n_bytes / float(np.median(times))


def device_read_bandwidth(threads: int, n_bytes: int = 1 << 30) -> float:
    """GB/s at which a kernel reads device memory once; `threads` does not matter."""
    from hspec_kernels.stream_read import stream_read

    words = torch.zeros(n_bytes // 4, dtype=torch.int32, device="cuda")
    median, _, _ = time_interleaved({"read": lambda: stream_read(words)}, Bench())["read"]
    return n_bytes / median / 1e3
