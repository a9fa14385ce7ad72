"""Measure what the stages of decoding rounds cost where it counts: in a real decoding loop.

Models evict each other from the caches, the allocator is warm, the text is a real one: what a
stage costs there no benchmark of the stage alone tells.  One session decodes with a drafter whose
sizes are drawn anew before every round, another decodes plainly with the same target, and they
take turns:

    plain x 5, drafted x 8, plain x 5, drafted x 8, ...

Of each plain burst the first round is not counted, as it finds the drafter's data in the caches.
Every time stands beside the median of the plain rounds just before and just behind it: the unit in
which times of a machine that drifts can be compared.  `cost.stage_costs` makes curves of the rows.
"""

import random
from dataclasses import asdict, dataclass
from pathlib import Path
from time import monotonic

import numpy as np
import pandas as pd

from hspec_lab.config import Chain, Config, Drafting, Eagle2, Refine, most_nodes
from hspec_lab.draft import Eagle2Drafter, RefineDrafter
from hspec_lab.experiment import Progress, Session, conditions, prompts_of
from hspec_lab.pipeline import (
    Models,
    check,
    check_prompts,
    check_sources,
    fingerprint,
    levels,
    tokenizer_of,
)
from hspec_lab.quantize import make_missing
from hspec_lab.stages_folder import GROUP, STAGES, begin, draft_text, write_stages
from hspec_lab.text import tokenizer_id

PLAIN_A_TURN, DRAFTED_A_TURN = 5, 8
_SIZES = ("tree_size", "depth", "top_k", "at_least")


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundsPlan:
    """Which rounds to measure.

    Attributes:
        targets: `where@format`.
        drafts: drafters with the largest sizes to draw; each is measured on each target.
        seconds: wall time per target and drafter, loading not counted.
        prompts: empty: the first `n_prompts` that ship with the zoo.
        max_new_tokens: per prompt; with the prompts it sets which contexts are measured.

    Raises:
        ValueError: one line saying what came and what would be right.
    """

    targets: tuple[str, ...]
    drafts: tuple[Drafting, ...]
    seconds: float = 60.0
    prompts: tuple[str, ...] = ()
    n_prompts: int = 8
    max_new_tokens: int = 256
    threads: int = 2
    device: str = "cpu"
    seed: int = 0

    def __post_init__(self):
        if self.device != "cpu":
            raise ValueError(
                f"stages are measured in rounds on cpu alone, got device {self.device!r}: there a "
                "graph is captured for every size; take curves (hspec measure --device cuda)"
            )
        if not self.targets or not self.drafts:
            raise ValueError("nothing to measure: name at least one target and one drafter")
        if type(self.seconds) not in (int, float) or not self.seconds > 0:
            raise ValueError(f"seconds must be above 0, got {self.seconds!r}")
        if self.max_new_tokens < 2:
            raise ValueError(f"max_new_tokens must be >= 2, got {self.max_new_tokens!r}")
        for draft in self.drafts:
            _check_draft(draft)

    @property
    def groups(self) -> list[tuple[str, Drafting]]:
        return [(target, draft) for target in self.targets for draft in self.drafts]

    def config(self, target: str, draft: Drafting | None) -> Config:
        """The config that decodes a group's rounds, or the plain ones."""
        return Config(
            target=target,
            draft=draft,
            prompts=self.prompts,
            n_prompts=self.n_prompts,
            max_new_tokens=self.max_new_tokens,
            seed=self.seed,
            threads=self.threads,
            device=self.device,
        )


def _check_draft(draft: Drafting) -> None:
    while isinstance(draft, Refine):
        draft = draft.draft
    if not isinstance(draft, Eagle2 | Chain):
        raise ValueError(f"stages are measured for Eagle2, Chain and Refine, got {draft!r}")
    if isinstance(draft, Eagle2) and draft.tree_size < 2:
        raise ValueError(f"a drafted tree has at least 2 nodes, got {draft!r}")


def measure_rounds(
    plan: RoundsPlan, folder: Path, progress: Progress | None = None
) -> pd.DataFrame:
    """Measure every target and drafter of a plan that `folder` does not hold yet.

    The folder is written anew after each of them, so a stopped run goes on where it was.

    Args:
        progress: called with seconds done, seconds in all and a few words.

    Returns:
        everything `folder` holds now, see `stages_folder.STAGES`.

    Raises:
        ValueError: something about the plan is wrong, or the folder was measured under other
            conditions.
    """
    folder, progress = Path(folder), progress or (lambda done, total, text: None)
    configs = {group: plan.config(*group) for group in plan.groups}
    for config in configs.values():
        check_sources(config)
    tokenizers = {}
    for config in configs.values():
        make_missing(levels(config), progress)
        check(config)
        tokenizer = tokenizer_of(config)
        tokenizers[config.target] = tokenizer_id(tokenizer)
        check_prompts(config, [tokenizer.encode(prompt).ids for prompt in prompts_of(config)])
    keys = {group: (group[0], draft_text(group[1])) for group in configs}
    weights = {" ".join(keys[group]): fingerprint(config) for group, config in configs.items()}
    found = conditions(plan.device, plan.threads)
    asked = {name: value for name, value in asdict(plan).items() if name != "drafts"}
    table = begin(
        folder, found, asked | {"drafts": [key[1] for key in keys.values()]}, weights, tokenizers
    )
    known, models, loaded = set(map(tuple, table[GROUP].to_numpy().tolist())), None, None
    for number, (group, key) in enumerate(keys.items()):
        if key in known:
            continue
        if loaded != group[0]:
            models, loaded = Models(), group[0]  # frees the last ones before others are loaded
        rows = _measured(plan, group, models, number * plan.seconds, progress)
        rows = rows.assign(target=key[0], draft=key[1])[list(STAGES)].astype(STAGES)
        table = pd.concat([table, rows], ignore_index=True)
        write_stages(folder, table)
    return table


def _measured(plan: RoundsPlan, group, models: Models, begun: float, progress) -> pd.DataFrame:
    """The rows of one target and drafter, but for the columns that name it."""
    total, words = len(plan.groups) * plan.seconds, f"{group[0]}, {plan.config(*group).method}"
    progress(int(begun), int(total), f"loading {words}")
    plain = _Rounds(Session(plan.config(group[0], None), models))
    drafted = _Rounds(Session(plan.config(*group), models))
    draw, turn, start = random.Random(plan.seed), 0, monotonic()
    while (spent := monotonic() - start) < plan.seconds or turn < 2:
        progress(int(begun + min(spent, plan.seconds)), int(total), words)
        for _ in range(PLAIN_A_TURN):
            plain.one(turn)
        for _ in range(DRAFTED_A_TURN):
            drafted.one(turn, draw)
        turn += 1
    for _ in range(PLAIN_A_TURN):
        plain.one(turn)
    plain, drafted = plain.rows(), drafted.rows()
    return _beside(pd.concat([plain, drafted], ignore_index=True))


def _beside(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows with `plain_us`."""
    plain = rows[(rows["method"] == "ar") & (rows["phase"] == "round")]
    bursts = plain[plain.groupby("turn").cumcount() > 0].groupby("turn")["us"].apply(np.array)
    around = {
        turn: np.median(np.concatenate([bursts[turn], bursts.get(turn + 1, bursts[turn])]))
        for turn in bursts.index
    }
    return rows.assign(plain_us=rows["turn"].map(around))


class _Rounds:
    """Decodes one session's prompts over and over, a round at a time."""

    def __init__(self, session: Session):
        self.session, self.method = session, session.config.method
        session.warm_up()
        self.knobs, self.top_k = _knobs(session.verifier.drafter)
        self.prompt, self.running, self.notes = -1, iter(()), []
        self.found, self.n_kept = [], 0

    def one(self, turn: int, draw: random.Random | None = None) -> None:
        """Run one round, with sizes from `draw`."""
        sizes = self._drawn(draw) if draw else (0, 0, 0, 0)
        n_empty = 0
        while (item := next(self.running, None)) is None or item.index < 0:
            if item is None:
                n_empty += 1
                if n_empty > len(self.session.prompts) + 1:
                    raise ValueError("no prompt has a round: every output ends with the prefill")
                self._keep()
                self.prompt = (self.prompt + 1) % len(self.session.prompts)
                self.running = self.session.rounds_of(self.prompt)
        self.notes.append((turn, *sizes))

    def _drawn(self, draw: random.Random) -> tuple[int, int, int, int]:
        """Give every level of the drafter new sizes; those of the head and of the outermost."""
        sizes = {}
        for owner, name, least, most in self.knobs:
            setattr(owner, name, draw.randint(least, most))
            sizes.setdefault(name, getattr(owner, name))
        size, depth = sizes.get("tree_size", 0), sizes.get("depth", 0)
        if size:
            size = most_nodes(Eagle2(size, depth, self.top_k))
        return size, depth, self.top_k, sizes.get("at_least", 0)

    def _keep(self) -> None:
        """Take over what was recorded of the prompt so far."""
        tables = self.session.recorder.tables()
        rounds, spans = (
            table[(table["prompt"] == self.prompt) & ~table["warmup"]]
            for table in (tables["rounds"], tables["spans"])
        )
        if not self.notes:
            return
        read = spans[spans["round"] < 0].rename(columns={"duration_us": "us"})
        spans = spans[spans["round"] >= 0]
        whole = rounds.assign(phase="round", level="target", n_tokens=rounds["n_proposed"] + 1)
        spans = spans.merge(rounds[["round", "n_emitted"]], on="round")
        rows = pd.concat([whole, spans], ignore_index=True).rename(columns={"duration_us": "us"})
        notes = pd.DataFrame(self.notes, columns=["turn", *_SIZES])
        rows = rows.join(notes, on="round").assign(method=self.method)
        rows["round"] += self.n_kept
        read = read.assign(turn=self.notes[0][0], method=self.method, n_emitted=0)
        read = read.assign(**dict.fromkeys(_SIZES, 0))
        self.n_kept += len(rounds)
        rows = pd.concat([read, rows], ignore_index=True)
        self.found.append(rows[[name for name in STAGES if name in rows]])
        self.session.recorder.forget(self.prompt)
        self.notes = []

    def rows(self) -> pd.DataFrame:
        """Everything measured; ends the decoding under way."""
        self._keep()
        self.running.close()
        return pd.concat(self.found, ignore_index=True)


def _knobs(drafter) -> tuple[list[tuple], int]:
    """What to draw: (owner, attribute, least, most), the outermost first; and the head's top_k."""
    found = []
    while isinstance(drafter, RefineDrafter):
        found.append((drafter, "at_least", 1, drafter.at_least))
        drafter = drafter.verifier.drafter
    if not isinstance(drafter, Eagle2Drafter):
        return found, 0
    sizes = [(drafter, "tree_size", 2, drafter.tree_size), (drafter, "depth", 1, drafter.depth)]
    return found + sizes, drafter.top_k
