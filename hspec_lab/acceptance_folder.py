"""An acceptance trace on disk: what a drafter would propose at every position of a text; no torch.

<folder>/trace.json       schema, kind, conditions, config (the largest that it answers for), texts
         text.parquet     one row per token of the target's text, see `TEXT`
         states.parquet   one row per state from which a draft may start, see `STATES`

Names.  The target's text behind prompt i is t_0 (the prefill's), t_1, ...; at position q the text
is known up to t_q, which is pending, and a round that starts there emits t_(q+1), ...  The
*verifying model* is the one whose rounds a draft head serves: the target for EAGLE-2, the
intermediate model for a hierarchy or a chain.  A state is a text that the verifying model may stand
behind: branch 0 is the target's text up to t_q; branch j > 0 is that model's own text, j tokens
past position q, where it would have gone on otherwise than the target.

`rank_d_l` says how many nodes of a draft tree of depth d come before the one at level l on the
verifying model's own continuation, so it is among the first n nodes exactly when rank < n - 1
(the root is a node too).  -1: the draft does not hold it, however large.  `child_l`: the place of
that token among its parent's children, most probable first, if all above it are right; -1: behind
`MAX_CHILD`.
"""

import json
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from pathlib import Path

import numpy as np
import pandas as pd
from pyarrow import ArrowException

from hspec_lab.config import Chain, Config, Eagle2, Refine, as_dict, from_dict, head_draft
from hspec_lab.store import read_head_file, replace_file
from hspec_lab.study_folder import SAME_CONDITIONS

SCHEMA_VERSION = 1
_NEEDED = (
    "config",
    "conditions",
    "weights",
    "tokenizer",
    "prompts",
    "prompt_tokens",
    "n_positions",
)
MAX_CHILD = 32
TEXT = {
    "prompt": "int32",
    "position": "int32",
    "token": "int32",
    "gap": "float32",  # how far the two highest logits behind which it was chosen lie apart
}
# then `child_l` and `rank_d_l`, int16, see `rank_columns`; none without a draft head
STATES = {
    "prompt": "int32",
    "position": "int32",
    "branch": "int16",
    "token": "int32",  # the verifying model's own next token
    "second": "int32",  # what it would have said second
    "margin": "float32",  # by how much less likely, in logits
}


def child_columns(depth: int) -> list[str]:
    """`child_1` .. `child_<depth>`."""
    return [f"child_{level}" for level in range(1, depth + 1)]


def rank_columns(depth: int) -> list[str]:
    """`rank_d_l` for each depth limit d and level l <= d, by d, then by l."""
    return [f"rank_{d}_{level}" for d in range(1, depth + 1) for level in range(1, d + 1)]


@dataclass(frozen=True, eq=False)
class Trace:
    """One acceptance trace.

    Attributes:
        name: what its folder is called.
        head: what `trace.json` says: `config` as `config.as_dict`, `conditions`, `weights`,
            `tokenizer` (a hash), `prompts`, `prompt_tokens`, `n_positions` (per prompt, how many
            tokens count: those behind them only settle the last rounds), `eos_ids`.
        text, states: see the module.
    """

    name: str
    head: dict
    text: pd.DataFrame
    states: pd.DataFrame

    @cached_property
    def config(self) -> Config:
        """The largest config that this trace answers for."""
        return from_dict(self.head["config"])

    @property
    def draft(self) -> Eagle2 | Chain | Refine:
        """Its drafter, with the largest depth and minimum draft length recorded."""
        return self.config.draft

    @property
    def eagle(self) -> Eagle2 | None:
        """The draft head's settings; None for a chain."""
        return head_draft(self.config.draft)

    @property
    def depth(self) -> int:
        """The largest depth recorded; 0 without a draft head."""
        return self.eagle.depth if self.eagle else 0

    @cached_property
    def ranks(self) -> np.ndarray:
        """int16 [n_states, depth + 1, depth + 1]: by state, depth limit, level; -1 is not there."""
        found = np.full((len(self.states), self.depth + 1, self.depth + 1), -1, dtype=np.int16)
        for d in range(1, self.depth + 1):
            for level in range(1, d + 1):
                found[:, d, level] = self.states[f"rank_{d}_{level}"]
        return found

    @property
    def n_counted(self) -> int:
        """Positions that count, over all prompts."""
        return int(sum(self.head["n_positions"]))

    def caption(self) -> str:
        """What a figure made with this trace says of it."""
        found, heat = self.head["conditions"], self.config.temperature
        drawn = f", temperature {heat:g}" if heat else ""
        return (
            f"acceptance replayed from {self.name} ({self.config.target}{drawn}, "
            f"{self.n_counted} positions, {found['date'][:10]})"
        )

    def __repr__(self) -> str:
        return f"Trace({self.name}: {self.n_counted} positions, {self.config!r})"


def begin_trace(folder: Path, head: dict) -> Trace | None:
    """Make a folder ready; what it holds already, None when nothing.

    Args:
        head: as `Trace.head`, without `schema` and `kind`; `prompt_tokens` and `n_positions` empty.

    Raises:
        ValueError: the folder is damaged, or holds a trace of something else.
    """
    if not (folder / "trace.json").exists():
        return None
    found = read_trace(folder)
    told, now = (_facts(one) for one in (found.head, json.loads(json.dumps(head))))
    for name in now:
        if told.get(name) != now[name]:
            raise ValueError(
                f"{folder} holds a trace with {name} {str(told.get(name))[:120]!r}, now it is "
                f"{str(now[name])[:120]!r}: give another folder"
            )
    return found


def _facts(head: dict) -> dict:
    """What must not change while a trace is recorded."""
    facts = {name: head[name] for name in ("weights", "tokenizer", "prompts")}
    same = {name: head["conditions"].get(name) for name in SAME_CONDITIONS}
    return head["config"] | facts | same


def write_trace(folder: Path, head: dict, text: pd.DataFrame, states: pd.DataFrame) -> None:
    """Replace a trace's files, each whole or not at all.

    Raises:
        ValueError: a column is missing or foreign.
    """
    folder.mkdir(parents=True, exist_ok=True)
    depth = _depth_of(head)
    _check_columns(folder / "text.parquet", text, TEXT)
    _check_columns(folder / "states.parquet", states, states_columns(depth))
    tables = {"text": text.astype(TEXT), "states": states.astype(states_columns(depth))}
    for name, table in tables.items():
        replace_file(
            folder / f"{name}.parquet",
            lambda path, table=table: table.to_parquet(path, index=False, compression="zstd"),
        )
    whole = {"schema": SCHEMA_VERSION, "kind": "recorded"} | head
    content = json.dumps(whole, indent=1, allow_nan=False) + "\n"
    replace_file(folder / "trace.json", lambda path: path.write_text(content, encoding="utf-8"))


def states_columns(depth: int) -> dict[str, str]:
    """Names and types of `states` for a recorded depth."""
    return STATES | dict.fromkeys(child_columns(depth) + rank_columns(depth), "int16")


def read_trace(folder: Path | str) -> Trace:
    """Read a trace.

    Raises:
        ValueError: there is none, or a file is missing, damaged, empty or of another schema.
    """
    folder = Path(folder)
    head = read_head_file(folder / "trace.json", SCHEMA_VERSION, "acceptance trace")
    if missing := [name for name in _NEEDED if name not in head]:
        raise ValueError(f"{folder / 'trace.json'} lacks {', '.join(missing)}")
    n_prompts, tables = len(head["n_positions"]), []
    for name, wanted in (("text", TEXT), ("states", states_columns(_depth_of(head)))):
        path = folder / f"{name}.parquet"
        try:
            table = pd.read_parquet(path)
        except (OSError, ValueError, ArrowException) as error:
            raise ValueError(f"{path} is missing, damaged or cut off: {error}") from None
        _check_columns(path, table, wanted)
        # a recording that was stopped between two files has a prompt more in its tables
        table = table[table["prompt"] < n_prompts].reset_index(drop=True)
        if table["prompt"].nunique() != n_prompts:
            raise ValueError(f"{path} holds {table['prompt'].nunique()} of {n_prompts} prompts")
        tables.append(table)
    return Trace(folder.resolve().name, head, *tables)


def shipped_traces() -> list[Trace]:
    """The traces that ship with the zoo, by name."""
    root = Path(str(resources.files("hspec_profiles") / "acceptance" / "zoo"))
    return [read_trace(path.parent) for path in sorted(root.glob("*/trace.json"))]


def _depth_of(head: dict) -> int:
    draft = head["config"]["draft"]
    while draft and draft["kind"] == "Refine":
        draft = draft["draft"]
    return draft["depth"] if draft and draft["kind"] == "Eagle2" else 0


def _check_columns(path: Path, table: pd.DataFrame, wanted: dict) -> None:
    if list(table.columns) != list(wanted):
        raise ValueError(f"{path} needs columns {list(wanted)}, got {list(table.columns)}")


def head_of(config: Config, **facts) -> dict:
    """The head of a trace that begins."""
    return {"config": as_dict(config), "prompt_tokens": [], "n_positions": []} | facts
