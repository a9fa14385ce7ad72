"""`hspec demo`: every format with every method on the same held-out prompts, in one run.

All sessions are loaded and warmed up first; then they take turns, prompt by prompt, so that a
disturbance of the machine falls on all of them alike.  Greedy outputs are compared with plain
decoding of the same format, and every difference is audited.  The numbers come from the stored
runs, so that the table, the report and a later look at the store agree.

The draft settings below are the same for every format; `hspec run` and the notebooks vary them.
"""

import json
import math
import os
import time
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path

import torch

from hspec_lab.audit import audit
from hspec_lab.config import Chain, Config, Drafting, Eagle2, Refine, check_format
from hspec_lab.experiment import WARMUP_TOKENS, Progress, Session, environment, prompts_of
from hspec_lab.lab import Run
from hspec_lab.pipeline import Models, check, locate, reach
from hspec_lab.quantize import make_missing
from hspec_lab.table import rows_of, write_page
from hspec_lab.terms import METHODS

FORMATS = ("fp32", "w8a8", "w4a16-g128")
TARGET, INTERMEDIATE = "zoo:target", "zoo:intermediate"
# the fastest of a dozen settings on two cores (docs/LOG.md, 2026-11-21): models this small make
# every drafted node dear, so short drafts and small trees win
CHAIN_DRAFT_LEN = 4
EAGLE2_TREE = Eagle2(tree_size=8, depth=2, top_k=4)
HIERSPEC_TREE = Eagle2(tree_size=6, depth=2, top_k=3)
HIERSPEC_AT_LEAST = 4
INTERMEDIATE_FORMAT = "w4a16-g128"  # None: the target's own
FEWEST_TOKENS = 32  # an output shorter than this says little
PEER_FORMAT = "transformers fp32"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a demo measures, and how long it may take."""

    formats: tuple[str, ...] = FORMATS
    methods: tuple[str, ...] = METHODS
    n_prompts: int = 8
    max_new_tokens: int = 128
    threads: int = 2
    intermediate_format: str | None = INTERMEDIATE_FORMAT
    seconds: float | None = None  # with a limit, prompts and tokens shrink to what fits
    peer: bool = False  # add transformers' own decoding

    def __post_init__(self):
        for format in (*self.formats, self.intermediate_format or "fp32"):
            check_format(format)
        if unknown := [name for name in self.methods if name not in METHODS]:
            raise ValueError(f"unknown method {unknown[0]!r}; known: {', '.join(METHODS)}")
        if "ar" not in self.methods or not self.formats:
            raise ValueError("a demo needs a format, and ar among its methods to compare with")
        if self.peer and "fp32" not in self.formats:
            raise ValueError("transformers decodes at fp32: add fp32 to the formats")


# 60 s on two cores, less what importing and writing take
QUICK = Plan(n_prompts=3, max_new_tokens=64, seconds=45.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Demo:
    """What a demo found.

    Attributes:
        rows: one dict per format and method, as `table.rows_of` makes them.
        environment: the conditions, and what was asked for.
        audits: each greedy output that differs from plain decoding, with its format and method.
        runs: the stored runs, in the order of the rows.
        report: the page.
    """

    rows: list[dict]
    environment: dict
    audits: list[dict]
    runs: list[Run] = field(repr=False)
    report: Path

    @property
    def bugs(self) -> list[dict]:
        return [entry for entry in self.audits if entry["verdict"] == "bug"]

    def json(self) -> str:
        """One line of JSON; numbers that are not finite become null."""
        return json.dumps(
            _finite({"rows": self.rows, "environment": self.environment}), allow_nan=False
        )


def draft_of(method: str, intermediate: str) -> Drafting | None:
    """The drafter that the demo uses for a method."""
    return {
        "ar": None,
        "chain": Chain(intermediate, draft_len=CHAIN_DRAFT_LEN),
        "eagle2": EAGLE2_TREE,
        "hierspec": Refine(intermediate, HIERSPEC_TREE, at_least=HIERSPEC_AT_LEAST),
    }[method]


def config_of(plan: Plan, format: str, method: str) -> Config:
    """The config behind one row of the table."""
    intermediate = f"{INTERMEDIATE}@{plan.intermediate_format or format}"
    return Config(
        target=f"{TARGET}@{format}",
        draft=draft_of(method, intermediate),
        n_prompts=plan.n_prompts,
        max_new_tokens=plan.max_new_tokens,
        threads=plan.threads,
    )


def run_demo(
    plan: Plan, root: Path, report: Path, progress: Progress = lambda done, total, text: None
) -> Demo:
    """Measure, audit, store and draw.

    Args:
        plan: what to measure.
        root: the store; gets one run folder per row.
        report: the page to write.
        progress: called with tokens done, tokens in all and a few words.

    Raises:
        ValueError: a model, a prompt or the plan is wrong.
    """
    deadline = math.inf if plan.seconds is None else time.monotonic() + plan.seconds
    load_before = [round(load, 2) for load in os.getloadavg()]
    sessions, peers = _load(plan, progress), _load_peers(plan)
    per_token = _warm_up(sessions, progress) * (1 + len(peers) / len(sessions))
    # prefills, audits and drawing come on top
    n_tokens = affordable(plan, 0.7 * (deadline - time.monotonic()) / per_token)
    n_prompts = _take_turns(sessions, peers, n_tokens, deadline, progress)
    audits = _audits(sessions)
    for session in sessions.values():
        # what is stored must say what was decoded, or it would answer for more than that
        session.config = replace(session.config, n_prompts=n_prompts, max_new_tokens=n_tokens)
    runs = [
        Run(session.write(root, [entry for entry in audits if _is_of(entry, key)]))
        for key, session in sessions.items()
    ]
    rows = rows_of(runs)
    found = environment(next(iter(sessions.values())).config) | {
        "load_average": load_before,
        "load_average_after": [round(load, 2) for load in os.getloadavg()],
        "kind": "measured",
        "n_prompts": n_prompts,
        "max_new_tokens": n_tokens,
        "asked_for": asdict(plan),
        "intermediate_format": plan.intermediate_format or "the target's",
        "drafts": {method: repr(draft_of(method, INTERMEDIATE)) for method in plan.methods},
    }
    if peers:
        rows += _peer_rows(peers, sessions, audits)
        found["transformers"] = version("transformers")
        found["peer"] = comparisons(rows)
    note = f"{n_prompts} held-out prompts x {n_tokens} tokens, greedy, taking turns; measured"
    write_page(report, rows, runs, found, note=note)
    return Demo(rows=rows, environment=found, audits=audits, runs=runs, report=report)


def affordable(plan: Plan, n_tokens: float) -> int:
    """Tokens per output when `n_tokens` of every session can be paid for."""
    if n_tokens >= plan.n_prompts * plan.max_new_tokens:
        return plan.max_new_tokens
    fewest = min(FEWEST_TOKENS, plan.max_new_tokens)
    return min(plan.max_new_tokens, max(int(n_tokens / plan.n_prompts), fewest))


def _load(plan: Plan, progress: Progress) -> dict[tuple[str, str], Session]:
    keys = [(format, method) for format in plan.formats for method in plan.methods]
    configs = {key: config_of(plan, *key) for key in keys}
    for config in configs.values():
        make_missing(config, progress)
        check(config)
        prompts_of(config)
    sessions, models = {}, Models()
    for n, (key, config) in enumerate(configs.items()):
        progress(n, len(keys), f"loading {key[1]} {key[0]}")
        sessions[key] = Session(config, models)
    return sessions


def _warm_up(sessions: dict, progress: Progress) -> float:
    """Make every session ready; returns seconds that one token of all of them takes, roughly."""
    seconds = 0.0
    for n, (key, session) in enumerate(sessions.items()):
        progress(n, len(sessions), f"warming up {key[1]} {key[0]}")
        _see_row_counts(session)
        start = time.perf_counter()
        session.warm_up()
        seconds += time.perf_counter() - start
    return seconds / min(WARMUP_TOKENS, session.config.max_new_tokens)


@torch.inference_mode()
def _see_row_counts(session: Session) -> None:
    """Run every level once at each row count its rounds can have: kernels are made per count."""
    verifier, draft = session.verifier, session.config.draft
    while verifier is not None:
        model, drafter = verifier.model, verifier.drafter
        counts = set(range(1, reach(draft) + 2))
        if isinstance(draft, Eagle2):
            counts.add(draft.tree_size)
            _see_head(drafter.head, counts | {draft.top_k})
        cache = model.new_cache(max(counts))
        for n in counts:
            model.logits(model.forward([0] * n, cache))
        verifier, draft = getattr(drafter, "verifier", None), getattr(draft, "draft", None)


def _see_head(head, counts: set[int]) -> None:
    cache, hidden = head.new_cache(max(counts)), head.shape.hidden
    for n in counts:
        tokens, features = torch.zeros(n, dtype=torch.long), torch.zeros(n, hidden)
        rows = head.geometry.path_rows(0, n)
        head.model.lm_head(head.forward(tokens, features, cache, rows))


def _take_turns(
    sessions: dict, peers: list, n_tokens: int, deadline: float, progress: Progress
) -> int:
    """Decode prompt by prompt, each with every session; returns how many were in time."""
    n_prompts = len(next(iter(sessions.values())).prompts)
    per_prompt = n_tokens * (len(sessions) + len(peers))
    total, done = n_prompts * per_prompt, 0
    for index in range(n_prompts):
        start, words = time.monotonic(), f"prompt {index + 1} of {n_prompts}"
        for (format, method), session in sessions.items():
            progress(done, total, f"{words}, {method} {format}")
            for _ in session.rounds_of(index, max_new_tokens=n_tokens):
                pass
            done += n_tokens
        for peer in peers:
            progress(done, total, f"{words}, transformers {peer.method}")
            peer.take_turn(session.prompt_ids[index], n_tokens)
            done += n_tokens
        # another prompt would take as long as this one
        if 2 * time.monotonic() - start > deadline:
            break
    progress(done, done, "decoded")
    return index + 1


def _audits(sessions: dict) -> list[dict]:
    """Every greedy output that differs from plain decoding of the same format, judged."""
    found = []
    for (format, method), session in sessions.items():
        plain = sessions[format, "ar"]
        for index in session.rounds if session is not plain else ():
            entry = _audit(plain, index, session.output_ids(index))
            found += [{"format": format, "method": method} | entry] if entry else []
    return found


def _audit(plain: Session, index: int, drafted_ids: list[int]) -> dict | None:
    model, prompt_ids = plain.verifier.model, plain.prompt_ids[index]
    return audit(model, prompt_ids, plain.output_ids(index), drafted_ids, index)


def _is_of(entry: dict, key: tuple[str, str]) -> bool:
    return (entry["format"], entry["method"]) == key


def conditions_text(demo: Demo) -> str:
    """What stands below the table: what was measured, how, where, and what is wrong with it."""
    found, lines = demo.environment, []
    lines.append(
        f"measured: {found['n_prompts']} held-out prompts x {found['max_new_tokens']} tokens, "
        "greedy, formats and methods taking turns; speed-up over ar of the same format, with its "
        "95 % interval over prompts; tokens/s without prefill"
    )
    asked = found["asked_for"]
    if (asked["n_prompts"], asked["max_new_tokens"]) != (
        found["n_prompts"],
        found["max_new_tokens"],
    ):
        lines.append("fewer than asked for, so as to finish in time")
    lines += [f"{method}: {draft}" for method, draft in found["drafts"].items() if draft != "None"]
    lines.append(f"format of the intermediate model: {found['intermediate_format']}")
    lines.append(
        f"{found['device']} ({found['cpu']}), {found['threads']} threads, torch {found['torch']}, "
        f"load {found['load_average'][0]} before, {found['date']}, commit {found['commit'] or '?'}"
    )
    if ratios := found.get("peer"):
        told = ", ".join(f"{name.replace('_', ' ')} {ratio:.2f}x" for name, ratio in ratios.items())
        lines.append(f"over transformers {found['transformers']}: {told}")
    for entry in demo.audits:
        loud = "BUG: " if entry["verdict"] == "bug" else "rounding: "
        facts = ", ".join(f"{name} {_short(value)}" for name, value in entry.items())
        lines.append(loud + facts)
    return "\n".join(lines)


# ---- transformers, in the same run -----------------------------------------------------------


class _PeerTurns:
    """transformers' own decoding of the same weights, and what it took so far."""

    def __init__(self, peer):
        self.method, self._peer = peer.method, peer
        self.outputs: list[list[int]] = []
        self.n_tokens, self.seconds = 0, 0.0

    def take_turn(self, prompt_ids: list[int], n_tokens: int) -> None:
        if not self.outputs:
            self._peer.measure_prompt(prompt_ids, min(n_tokens, WARMUP_TOKENS))  # does not count
        ids, n, seconds = self._peer.measure_prompt(prompt_ids, n_tokens)
        self.outputs.append(ids)
        self.seconds += seconds
        self.n_tokens += n


def _load_peers(plan: Plan) -> list[_PeerTurns]:
    if not plan.peer:
        return []
    # transformers' models take seconds to import
    from hspec_lab.peer import Peer

    target = locate(TARGET)
    return [_PeerTurns(Peer(target)), _PeerTurns(Peer(target, locate(INTERMEDIATE)))]


def _peer_rows(peers: list[_PeerTurns], sessions: dict, audits: list[dict]) -> list[dict]:
    """Rows like ours; `audits` grows by their differences from our plain decoding."""
    rows, plain = [], sessions["fp32", "ar"]
    for peer in peers:
        key = {"format": PEER_FORMAT, "method": peer.method}
        judged = [_audit(plain, index, ids) for index, ids in enumerate(peer.outputs)]
        found = [key | entry for entry in judged if entry]
        audits += found
        row = {"tokens_per_s": peer.n_tokens / peer.seconds, "mismatches": len(found)}
        row["bugs"] = sum(entry["verdict"] == "bug" for entry in found)
        row["speedup"] = row["tokens_per_s"] / (rows[0] if rows else row)["tokens_per_s"]
        rows.append(key | row | {"mean_emitted": math.nan, "phase_share": {}})
    return rows


def comparisons(rows: list[dict]) -> dict[str, float]:
    """Our speeds over transformers': plain over plain, and the best speculative row over theirs."""
    speed = {(row["format"], row["method"]): row["tokens_per_s"] for row in rows}
    drafted = [key for key in speed if key[0] != PEER_FORMAT and key[1] != "ar"]
    assisted = speed[PEER_FORMAT, "assisted"]
    found = {"ar_over_generate": speed["fp32", "ar"] / speed[PEER_FORMAT, "generate"]}
    if drafted:
        at_fp32 = max(speed[key] for key in drafted if key[0] == "fp32")
        found["best_fp32_over_assisted"] = at_fp32 / assisted
        found["best_over_assisted"] = max(speed[key] for key in drafted) / assisted
    return found


def _short(value) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _finite(value):
    if isinstance(value, dict):
        return {name: _finite(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
