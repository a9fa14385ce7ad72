"""Does speculation still pay on a quantized target?  One study, four measurements.

    T(n) / T(1)     a pass over n tokens, for every n, in units of the model's own one-token pass
    d T_d / T_t     what the head's d passes cost, in units of a plain step of the same prompt
    tau             tokens a round emits
    speed-up        over plain decoding of the same format, end to end

The first three explain the fourth:  T_sd / T_t = (d T_d / T_t + T(n) / T(1)) / tau.

A cell is one format, tree size and depth.  On every prompt plain decoding and the cell take turns,
and which goes first alternates, so that a machine that slows down favours neither.  The folder is
written anew after each cell: a study that was stopped goes on where it was.

    source  Zhang et al. 2025, arXiv 2505.22179, from which the split into factors comes
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import pandas as pd

from hspec_lab import measure
from hspec_lab.config import (
    CPU_FORMATS,
    DEVICE_FORMATS,
    Config,
    Eagle2,
    pool_nodes,
    split_model,
)
from hspec_lab.experiment import Progress, Session, conditions, prompts_of
from hspec_lab.pipeline import (
    Models,
    check,
    check_prompts,
    check_sources,
    fingerprint,
    tokenizer_of,
)
from hspec_lab.quantize import make_missing
from hspec_lab.store import read_cost
from hspec_lab.study_folder import CELL, CELLS, begin, write_cells


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a study measures.

    Attributes:
        models: `where@format`; empty: the zoo's target in every format of the device.
        tree_sizes: nodes, the root included; what a depth cannot fill is left out.
        depths: levels below the root, one pass of the head each.
        top_k: children per node that the head keeps.
        head: `folder@format` of the draft head; None: the one beside each model.
        prompts: empty: the first `n_prompts` that ship with the zoo.
        repeats: turns per prompt.
        context: tokens stored before a pass of the cost curves, near that of the prompts.
        curve_repeats: turns per n of the cost curves.

    Raises:
        ValueError: one line saying what came and what would be right.
    """

    models: tuple[str, ...] = ()
    tree_sizes: tuple[int, ...] = (2, 4, 8, 16, 24, 32, 48, 64)
    depths: tuple[int, ...] = (1, 2, 3, 4, 5)
    top_k: int = 8
    head: str | None = None
    prompts: tuple[str, ...] = ()
    n_prompts: int = 4
    max_new_tokens: int = 48
    repeats: int = 1
    context: int = 320
    curve_repeats: int = 15
    threads: int = 2
    device: str = "cpu"

    def __post_init__(self):
        if not self.models:
            formats = CPU_FORMATS if self.device == "cpu" else DEVICE_FORMATS
            models = tuple(f"zoo:target@{format}" for format in formats)
            object.__setattr__(self, "models", models)
        for name in ("models", "tree_sizes", "depths", "prompts"):
            value, kind = getattr(self, name), str if name in ("models", "prompts") else int
            if not isinstance(value, tuple | list) or not all(type(x) is kind for x in value):
                raise ValueError(f"{name} must be a tuple of {kind.__name__}, got {value!r}")
            object.__setattr__(self, name, tuple(dict.fromkeys(value)))
        if type(self.repeats) is not int or self.repeats < 1:
            raise ValueError(f"repeats must be a whole number >= 1, got {self.repeats!r}")
        if not self.tree_sizes or min(self.tree_sizes) < 2:
            raise ValueError(f"tree_sizes must be numbers >= 2, got {list(self.tree_sizes)}")
        # drafters, configs and curve plans check what they are given
        if not self.cells:
            raise ValueError(
                f"depths {list(self.depths)} with top_k {self.top_k} fill none of the "
                f"tree_sizes {list(self.tree_sizes)}: give smaller trees"
            )
        for model in self.models:
            config_of(self, model, *self.cells[0])
        curves_of(self)

    @property
    def cells(self) -> list[tuple[int, int]]:
        """Tree size and depth of every cell of a model."""
        return [
            (size, depth)
            for depth in self.depths
            for size in self.tree_sizes
            if size <= pool_nodes(Eagle2(size, depth, self.top_k))
        ]


def config_of(plan: Plan, model: str, tree_size: int = 0, depth: int = 0) -> Config:
    """The config of a cell; of plain decoding without a tree size."""
    draft = Eagle2(tree_size, depth, plan.top_k, plan.head) if tree_size else None
    return Config(
        target=model,
        draft=draft,
        prompts=plan.prompts,
        n_prompts=plan.n_prompts,
        max_new_tokens=plan.max_new_tokens,
        threads=plan.threads,
        device=plan.device,
    )


def curves_of(plan: Plan) -> measure.Plan:
    """The cost curves that a study needs."""
    return measure.Plan(
        models=plan.models,
        contexts=(plan.context,),
        rows=tuple(range(1, max(plan.tree_sizes) + 1)),
        repeats=plan.curve_repeats,
        threads=plan.threads,
        device=plan.device,
    )


def run_compat(plan: Plan, folder: Path, progress: Progress | None = None) -> pd.DataFrame:
    """Measure what of a plan `folder` does not hold yet.

    Args:
        folder: see `study_folder`; may hold more than the plan asks for.
        progress: called with parts done, parts in all and a few words; what it raises stops the
            study, and finished cells stay.

    Returns:
        every cell that `folder` holds now, see `study_folder.CELLS`.

    Raises:
        ValueError: a model, a head or a prompt does not fit the plan, or the folder was measured
            under other conditions.
    """
    folder, progress = Path(folder), progress or (lambda done, total, text: None)
    largest = max(plan.cells, key=lambda cell: cell[::-1])
    for model in plan.models:
        check_sources(config_of(plan, model, *largest))
    make_missing(plan.models, progress)
    weights = {model: _checked(plan, model) for model in plan.models}
    cells = begin(folder, conditions(plan.device, plan.threads), asdict(plan), weights)
    device = _measure_curves(plan, folder, progress)
    known = set(map(tuple, cells[CELL].to_numpy().tolist()))
    wanted = {
        (device, *split_model(model), *cell, plan.top_k): (model, cell)
        for model in plan.models
        for cell in plan.cells
    }
    todo = [(key, *cell) for key, cell in wanted.items() if key not in known]
    for key, taken in _measured(plan, todo, progress):
        added = pd.DataFrame([dict(zip(CELL, key, strict=True)) | row for row in taken])
        cells = pd.concat([cells, added[list(CELLS)].astype(CELLS)], ignore_index=True)
        write_cells(folder, cells)
    progress(len(todo), len(todo), "stored")
    return cells


def _checked(plan: Plan, model: str) -> str:
    """Find what is wrong with a model before anything is measured; its weights' fingerprint."""
    drafted = config_of(plan, model, *max(plan.cells, key=lambda cell: cell[::-1]))
    check(drafted)
    tokenizer = tokenizer_of(drafted)
    check_prompts(drafted, [tokenizer.encode(prompt).ids for prompt in prompts_of(drafted)])
    measure.open_model(model, plan.context + max(plan.tree_sizes), plan.device)
    return fingerprint(drafted)


def _measure_curves(plan: Plan, folder: Path, progress: Progress) -> str:
    """The cost curves, those that lack; what their table calls the device."""
    measure.measure_costs(curves_of(plan), folder, progress)
    head, costs = read_cost(folder)
    longest = max(plan.tree_sizes)
    shortest = int(costs.groupby(["model", "scheme"])["n"].max().min())
    if shortest < longest:
        raise ValueError(
            f"{folder} holds cost curves up to {shortest} tokens, trees have {longest}: "
            "give another folder"
        )
    return measure.device_name(head["conditions"])


def _measured(plan: Plan, todo: list, progress: Progress) -> Iterator[tuple[tuple, list[dict]]]:
    """Keys and rows, cell by cell; one model is in memory at a time."""
    loaded = None
    for done, (key, model, cell) in enumerate(todo):
        words = f"{model}, tree {cell[0]}, depth {cell[1]}"
        progress(done, len(todo), words)
        if loaded != model:
            models = plain = drafted = None  # frees the last one before the next is made
            models, loaded = Models(), model
            plain = Session(config_of(plan, model), models)
            plain.warm_up()
        drafted = Session(config_of(plan, model, *cell), models)
        drafted.warm_up()
        yield key, _take_turns(plan, plain, drafted)


def _take_turns(plan: Plan, plain: Session, drafted: Session) -> list[dict]:
    """One row per prompt and turn; the columns of `CELLS` that are no key."""
    rows = []
    for turn in range(plan.repeats):
        for index in range(len(plain.prompts)):
            order = (plain, drafted) if (turn + index) % 2 == 0 else (drafted, plain)
            for session in order:
                for _ in session.rounds_of(index):
                    pass
            same = plain.output_ids(index) == drafted.output_ids(index)
            found = _of_drafted(drafted, index) | _of_plain(plain, index)
            rows.append({"prompt": index, "turn": turn, "same_text": same} | found)
    return rows


def _of_drafted(session: Session, index: int) -> dict:
    rounds, phases = _recorded(session, index)
    draft, verify = phases.get("draft", 0.0), phases.get("verify_target", 0.0)
    return {
        "n_rounds": len(rounds),
        "n_emitted": int(rounds["n_emitted"].sum()),
        "rounds_us": rounds["duration_us"].sum(),
        "draft_us": phases["draft"].median() if "draft" in phases else float("nan"),
        "verify_us": phases["verify_target"].median() if len(rounds) else float("nan"),
        "rest_us": (rounds["duration_us"] - draft - verify).median(),
    }


def _of_plain(session: Session, index: int) -> dict:
    rounds, _ = _recorded(session, index)
    us = rounds["duration_us"]
    return {"plain_rounds": len(rounds), "plain_us": us.sum(), "step_us": us.median()}


def _recorded(session: Session, index: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Rounds of a prompt, and us of each phase in each, both indexed by round."""
    tables = session.recorder.tables()
    rounds, spans = (
        table[(table["prompt"] == index) & ~table["warmup"] & (table["round"] >= 0)]
        for table in (tables["rounds"], tables["spans"])
    )
    # launches return at once where a device has a clock of its own
    us = spans["device_us"].fillna(spans["duration_us"])
    phases = us.groupby([spans["round"], spans["phase"]]).sum().unstack()
    return rounds.set_index("round"), phases
