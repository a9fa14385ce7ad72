"""What was looked at: every node of every tree of a decode, and who produced which token; no torch.

<folder>/trees.json      schema, kind "looked", config, conditions, prompts and outputs
         nodes.parquet   one row per node, see `NODES`
         tokens.parquet  one row per output token, see `store.TABLES`

Looking takes time, so nothing here is a measurement, and no store of runs takes it for one.
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import pandas as pd
from pyarrow import ArrowException

from hspec_lab.store import TABLES, read_head_file, threads_text

SCHEMA_VERSION = 1
# which proposal a node belongs to; a level below the target runs several steps in a round
PROPOSAL = ["prompt", "round", "level", "step"]
NODES = {
    "prompt": "int64",
    "round": "int64",  # the target's; -1 is its prefill
    "level": "str",  # whose model verifies
    "step": "int64",  # of this level within the round
    "node": "int64",  # 0 is the root, the pending token
    "parent": "int64",  # -1 for the root
    "depth": "int64",
    "token": "int64",
    "piece": "str",  # the token's text, or its name where it is none
    "source": "str",  # the level that thought of it; empty for the root
    "p_draft": "float64",  # the drafter's probability of the token, given its parent; NaN unknown
    "rank": "int64",  # its place in the drafter's vocabulary there, 0 the best; -1 unknown
    "p_model": "float64",  # the verifying model's probability; NaN for the root
    "model_rank": "int64",
    "accepted": "bool",  # the root counts as accepted
    "choice": "int64",  # what the model says next: emitted where accepted, else its most likely
    "choice_piece": "str",
    "choice_p": "float64",  # the model's probability of that
    "choice_p_draft": "float64",  # the drafter's; NaN unknown
}


@dataclass(frozen=True)
class Trees:
    """A decode that was looked at.

    Attributes:
        head: schema, kind, config, conditions, prompts, outputs.
        nodes: as `NODES`.
        tokens: as `store.TABLES["tokens"]`.
    """

    head: dict
    nodes: pd.DataFrame
    tokens: pd.DataFrame

    @property
    def note(self) -> str:
        """Device, threads and date, for figures."""
        found = self.head["conditions"]
        return f"{found['device']}, {threads_text(found['threads'])}, {found['date'][:10]}"

    def write(self, folder: Path | str) -> Path:
        """Write a folder, whole or not at all; returns it.

        Raises:
            ValueError: it exists.
        """
        folder = Path(folder)
        if folder.exists():
            raise ValueError(f"{folder} exists already; trees are never written over others")
        unfinished = folder.with_name(f".unfinished-{folder.name}-{uuid4().hex[:8]}")
        text = json.dumps(self.head, indent=2, allow_nan=False) + "\n"
        try:
            unfinished.mkdir(parents=True)
            self.nodes.to_parquet(unfinished / "nodes.parquet", index=False)
            self.tokens.to_parquet(unfinished / "tokens.parquet", index=False)
            (unfinished / "trees.json").write_text(text, encoding="utf-8")
            unfinished.rename(folder)
        except BaseException:
            shutil.rmtree(unfinished, ignore_errors=True)
            raise
        return folder

    def disagreements(self) -> pd.DataFrame:
        """Every place where a drafted token was refused, one row per proposal at most.

        Returns:
            the columns of `PROPOSAL`; `node`, behind which they disagreed; `drafted`, `source`,
            `drafted_p_draft`, `drafted_p_model`, of the drafter's best token there; `chosen`,
            `chosen_p_draft`, `chosen_p_model`, of the token that the model said instead.
        """
        nodes = self.nodes
        last = nodes[nodes["accepted"]].sort_values("depth").drop_duplicates(PROPOSAL, keep="last")
        refused = nodes[~nodes["accepted"]].sort_values("rank", kind="stable")
        chosen = {"choice_piece": "chosen", "choice_p_draft": "chosen_p_draft"}
        chosen["choice_p"] = "chosen_p_model"
        drafted = {"piece": "drafted", "p_draft": "drafted_p_draft", "p_model": "drafted_p_model"}
        left = last[[*PROPOSAL, "node", *chosen]].rename(columns=chosen)
        right = refused[[*PROPOSAL, "parent", "source", *drafted]].rename(columns=drafted)
        both = left.merge(right, left_on=[*PROPOSAL, "node"], right_on=[*PROPOSAL, "parent"])
        first = both.drop_duplicates(PROPOSAL).drop(columns="parent")
        order = [*drafted.values(), *chosen.values()]
        return first.sort_values(PROPOSAL)[[*PROPOSAL, "node", "source", *order]].reset_index(
            drop=True
        )

    def rounds(self) -> pd.DataFrame:
        """Steps and nodes of each level in each round.

        Returns:
            `prompt`, `round`, `level`, `n_steps`, `n_proposed`, `n_accepted`, `n_emitted`.
        """
        key = ["prompt", "round", "level"]
        drafted = self.nodes[self.nodes["node"] > 0]
        table = self.nodes[self.nodes["node"] == 0].groupby(key).size().to_frame("n_steps")
        table["n_proposed"] = drafted.groupby(key).size()
        table["n_accepted"] = drafted.groupby(key)["accepted"].sum()
        table = table.fillna(0).astype("int64")
        table["n_emitted"] = table["n_accepted"] + table["n_steps"]
        return table.reset_index()

    def take_away(self) -> str:
        """One sentence that says how much of what was drafted reached the text."""
        told = self.rounds()
        told = told[told["round"] >= 0]
        of = told.groupby("level")[["n_steps", "n_proposed", "n_accepted", "n_emitted"]].sum()
        passes, offered, kept, emitted = of.loc["target"]
        below = of.loc["intermediate"] if "intermediate" in of.index else None
        if below is not None and below["n_proposed"]:
            before = (
                f"of {below['n_proposed']} nodes that the head drew, {below['n_steps']} passes of "
                f"the intermediate model made a sequence of {offered} tokens"
            )
        else:
            before = f"of {offered} nodes that were drafted in all"
        return (
            f"In {passes} rounds, {before}, of which the target kept {kept}; with one token of its "
            f"own a round that is **{emitted / passes:.2f} tokens per pass** of the target "
            f"({self.head['format']}, {self.note}, this prompt)."
        )


def read(folder: Path | str) -> Trees:
    """Read what `Trees.write` wrote.

    Raises:
        ValueError: a file is missing, damaged or of another schema.
    """
    folder = Path(folder)
    head = read_head_file(folder / "trees.json", SCHEMA_VERSION, "trees")
    tables = {}
    for name, columns in (("nodes", NODES), ("tokens", TABLES["tokens"])):
        path = folder / f"{name}.parquet"
        try:
            tables[name] = pd.read_parquet(path)
        except (OSError, ValueError, ArrowException) as error:
            raise ValueError(f"{path} is missing, damaged or cut off: {error}") from None
        if list(tables[name].columns) != list(columns):
            found = list(tables[name].columns)
            raise ValueError(f"{path} has the columns {list(columns)}, got {found}")
    return Trees(head, tables["nodes"], tables["tokens"])
