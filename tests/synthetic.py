"""Run folders made of invented numbers, and functions that pretend to measure; no model, no torch.

Lies beside the tests so that a child process can import it.
"""

import math
import os
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd

from hspec_lab import store
from hspec_lab.config import Chain, Config, Eagle2, Refine, as_dict, config_id

LEVEL = {"draft": "head", "verify_intermediate": "intermediate"}
# us of a round, by phase; the target costs less at fewer bits
ROUND_US = {
    "ar": {"verify_target": 7400, "accept": 20},
    "chain": {"verify_intermediate": 4800, "verify_target": 11000, "accept": 150, "kv_commit": 80},
    "eagle2": {"draft": 3300, "verify_target": 12400, "accept": 260, "kv_commit": 120},
    "hierspec": {
        "draft": 2600,
        "verify_intermediate": 3800,
        "verify_target": 9700,
        "accept": 150,
        "kv_commit": 140,
    },
}
MEAN_ACCEPTED = {"ar": 0, "chain": 2.4, "eagle2": 2.0, "hierspec": 3.1}
BITS = {"fp32": 1.0, "w8a16": 0.8, "w8a8": 0.6, "w4a16-g128": 0.55, "w4a16-g32": 0.6}
TEXT = (
    'def read(path: str) -> "Table":\n    """Read <a> table & check it."""\n'
    '    with open(path, encoding="utf-8") as handle:\n        return Table(handle.read())\n'
)


def write_synthetic_run(root: Path, config: Config, n_rounds: int = 24) -> Path:
    """Write a run of invented numbers for `config` and say where."""
    draw = np.random.default_rng(int(config_id(config), 16) % 2**32)
    costs = {p: us * BITS[config.format] for p, us in ROUND_US[config.method].items()}
    n_prompts = len(config.prompts) or config.n_prompts
    rounds, spans, tokens = [], [], []
    for prompt in range(n_prompts):
        now, kv_len = 0.0, 40
        spans.append([prompt, -1, False, "prefill", "target", 40, 0, 0, now, 9000.0, math.nan])
        tokens.append([prompt, -1, 0, 1, "def", "target"])
        for number in range(n_rounds):
            accepted = min(int(draw.poisson(MEAN_ACCEPTED[config.method])), 6)
            begin = now
            for phase, us in costs.items():
                us *= draw.uniform(0.95, 1.05)
                level = LEVEL.get(phase, "target")
                spans.append([prompt, number, False, phase, level, 8, 8, kv_len, now, us, math.nan])
                now += us
            now += 60
            rounds.append(
                [prompt, number, False, 6, accepted, accepted + 1, kv_len, begin, now - begin]
            )
            kv_len += accepted + 1
            for source in [*draw.choice(["head", "intermediate"], accepted), "target"]:
                place = len([t for t in tokens if t[0] == prompt])
                start = place * 4 % len(TEXT)
                tokens.append([prompt, number, place, place % 97, TEXT[start : start + 4], source])
    table = {"rounds": rounds, "spans": spans, "tokens": tokens}
    folder = store.new_folder(root, config_id(config))
    tables = {
        name: pd.DataFrame(rows, columns=list(store.TABLES[name])) for name, rows in table.items()
    }
    return store.write_run(folder, _head(config, n_prompts), tables)


def _head(config: Config, n_prompts: int) -> dict:
    return {
        "kind": "measured",
        "config": as_dict(config),
        "config_id": config_id(config),
        "method": config.method,
        "format": config.format,
        "environment": {
            "device": "cpu",
            "cpu": "Invented 9000",
            "threads": config.threads,
            "date": "2026-01-02T03:04:05Z",
            "commit": "0123abc",
        },
        "prompts": [f"prompt {number}" for number in range(n_prompts)],
        "outputs": ["text"] * n_prompts,
    }


def quick_measure(config: Config, progress, root: Path | None = None) -> SimpleNamespace:
    """Pretend to measure, into `root` or $HSPEC_STORE."""
    for done in range(4):
        progress(done, 4, f"prompt {done}")
        time.sleep(float(os.environ.get("HSPEC_TEST_PAUSE", 0)))
    return SimpleNamespace(folder=write_synthetic_run(root or store.store_root(), config))


def endless_measure(config: Config, progress) -> None:
    """Pretend to measure for ever."""
    while True:
        progress(1, 4, f"still at it in {os.getpid()}")
        time.sleep(0.05)


def failing_measure(config: Config, progress) -> None:
    """Fail as a model would that cannot be loaded."""
    raise ValueError("no such folder: zoo\nwith a second line")


def plain_measure(config: Config, progress, root: Path | None = None) -> SimpleNamespace:
    """Measure plain decoding alone; fail with any drafter."""
    if config.draft is not None:
        raise ValueError("the head is on fire")
    return quick_measure(config, progress, root)


def dying_measure(config: Config, progress) -> None:
    """End the process as the kernel's killer would."""
    os._exit(9)


def write_synthetic_store(root: str | Path) -> tuple[Path, Config]:
    """Write runs of every method at two formats; returns the store and one of their configs."""
    formats, base = ("fp32", "w4a16-g128"), Config(n_prompts=4)
    eagle = Eagle2(tree_size=24, depth=4, top_k=8)
    for format in formats:
        small = f"zoo:intermediate@{format}"
        for draft in (None, Chain(small), eagle, Refine(small, eagle)):
            config = replace(base, target=f"zoo:target@{format}", draft=draft)
            write_synthetic_run(Path(root), config)
    return Path(root), config
