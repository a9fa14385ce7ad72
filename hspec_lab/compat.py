"""A compatibility study, read: what each factor of the speed-up is, and whether they explain it.

    speed-up = tau / (d T_d / T_t + T(n) / T(1))

Every number is in units of the same format's own plain step, so formats are compared by what
speculation adds to them, not by how fast they are.  Needs no torch.

study = open_study("compat-zoo")
study.cells(), study.best(), study.take_away()
"""

from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np
import pandas as pd

from hspec_lab import cost
from hspec_lab.store import read_cost
from hspec_lab.study_folder import CELL, read_cells, read_head

_SETTING = ["tree_size", "depth", "top_k"]


@dataclass(frozen=True)
class Study:
    """One study folder.

    Attributes:
        name: what the folder is called.
        head: what `study.json` says.
        turns: one row per cell, prompt and turn, see `study_folder.CELLS`.
        costs: cost curves, see `store.COSTS`.
    """

    name: str
    head: dict
    turns: pd.DataFrame
    costs: pd.DataFrame

    def _label(self, table: pd.DataFrame) -> pd.Series:
        """Formats, with their model where a study has several."""
        if self.costs["model"].nunique() > 1:
            return table["model"] + "@" + table["scheme"]
        return table["scheme"]

    def curves(self) -> pd.DataFrame:
        """T(n) / T(1): format, n, ratio with its quartiles `low` and `high`, time_us."""
        table = cost.relative(self.costs)
        one = table["time_us"] / table["ratio"]
        table = table.assign(low=table["low_us"] / one, high=table["high_us"] / one)
        table.insert(0, "format", self._label(table))
        return table[["format", "n", "ratio", "low", "high", "time_us"]]

    def cells(self) -> pd.DataFrame:
        """One row per cell: its factors, the measured speed-up and the predicted one.

        Returns:
            format, tree_size, depth, top_k, mean_emitted, draft_ratio (d T_d / T_t), verify_ratio
            (T(n) / T(1); NaN where no curve has this n), rest_ratio (what the equation leaves
            out, in units of T_t), speedup (median over prompts and turns) with its quartiles
            `low` and `high`, predicted, error (predicted / speedup - 1), same_text (share of
            outputs equal to plain decoding), n (outputs).
        """
        table = summarized(self.turns)
        curve = cost.relative(self.costs).rename(
            columns={"n": "tree_size", "ratio": "verify_ratio"}
        )
        keys = ["device", "model", "scheme", "tree_size"]
        table = table.merge(curve[[*keys, "verify_ratio"]], on=keys, how="left")
        parts = table["draft_ratio"] + table["verify_ratio"]
        table["predicted"] = table["mean_emitted"] / parts
        table["error"] = table["predicted"] / table["speedup"] - 1
        table.insert(0, "format", self._label(table))
        numbers = ["mean_emitted", "draft_ratio", "verify_ratio", "rest_ratio"]
        measured = ["speedup", "low", "high", "predicted", "error", "same_text", "n"]
        return table[["format", *_SETTING, *numbers, *measured]]

    def drafting(self) -> pd.DataFrame:
        """What d passes of the head cost: format, depth, draft_ratio with quartiles low and high.

        Turns of all tree sizes count alike, as the size only decides what is kept in the end.
        """
        turns = _whole(self.turns)
        turns = turns.assign(format=self._label(turns))
        return _spread(turns["draft_us"] / turns["step_us"], turns, ["format", "depth"])

    def best(self) -> pd.DataFrame:
        """Each format's fastest cell, as `cells` gives it."""
        return fastest(self.cells(), ["format"])

    def caption(self) -> dict[str, str]:
        """What a figure says of its origin: keyword arguments of every figure function."""
        found, plan = self.head["conditions"], self.head["plan"]
        device = self.costs["device"].iloc[0] if len(self.costs) else found["device"]
        n_prompts = len(plan["prompts"]) or plan["n_prompts"]
        note = [device, f"{n_prompts} prompts x {plan['max_new_tokens']} tokens, greedy"]
        note += [f"torch {found['torch']}", found["date"][:10], f"study {self.name}"]
        return {"origin": self.head["kind"], "note": ", ".join(note)}

    def take_away(self) -> str:
        """One sentence with numbers and their condition, as Markdown."""
        return sentence(self.curves(), self.cells(), self.caption()["note"])

    def __repr__(self) -> str:
        n_cells = len(self.turns[CELL].drop_duplicates())
        return f"Study({self.name}: {n_cells} cells; {self.caption()['note']})"


def open_study(folder: Path | str) -> Study:
    """Read a study.

    Args:
        folder: where; or the name of one that ships with the package.

    Raises:
        ValueError: there is none, or a file of it is missing, damaged or of another schema.
    """
    where = Path(folder)
    if where.name == str(folder) and not where.exists():
        where = Path(str(resources.files("hspec_profiles") / "studies" / str(folder)))
    head = read_head(where)
    return Study(where.name, head, read_cells(where), read_cost(where)[1])


def as_text(folder: Path | str) -> str:
    """Lines for a terminal: every format's fastest tree, and the study in one sentence."""
    study = open_study(folder)
    shown = ["format", *_SETTING, "mean_emitted", "draft_ratio", "verify_ratio", "speedup"]
    table = study.best()[[*shown, "low", "high", "predicted"]].round(2)
    return f"{table.to_string(index=False)}\n\n{study.take_away()}"


def summarized(turns: pd.DataFrame) -> pd.DataFrame:
    """One row per cell from one row per prompt and turn; outputs without a round do not count.

    Returns:
        the columns of `CELL`, mean_emitted, draft_ratio, rest_ratio, speedup, low, high,
        same_text, n; see `Study.cells`.
    """
    turns = _whole(turns)
    grouped = [turns[name] for name in CELL]
    by_plain = turns["plain_us"] / turns["plain_rounds"]
    ratios = {
        "draft_ratio": turns["draft_us"] / turns["step_us"],
        "rest_ratio": turns["rest_us"] / turns["step_us"],
    }
    sums = turns.groupby(CELL, sort=False)[["n_emitted", "n_rounds"]].sum()
    table = pd.DataFrame({"mean_emitted": sums["n_emitted"] / sums["n_rounds"]})
    for name, ratio in ratios.items():
        table[name] = ratio.groupby(grouped).median()
    speedup = by_plain / (turns["rounds_us"] / turns["n_emitted"])
    spread = _spread(speedup.rename("speedup"), turns, CELL).set_index(CELL)
    table = table.join(spread)
    table["same_text"] = turns["same_text"].groupby(grouped).mean()
    table["n"] = turns["prompt"].groupby(grouped).size()
    return table.reset_index()


def fastest(cells: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    """Of every group the row with the highest speed-up, in the groups' own order."""
    found = cells.dropna(subset="speedup")
    return found.loc[found.groupby(keys, sort=False)["speedup"].idxmax()].reset_index(drop=True)


def median_error(cells: pd.DataFrame) -> float:
    """Median over cells of |predicted / measured - 1|; NaN where nothing can be compared."""
    return float(cells["error"].abs().median())


def sentence(curves: pd.DataFrame, cells: pd.DataFrame, note: str) -> str:
    """The study in one sentence.

    Args:
        curves, cells: as `Study` gives them.
        note: the conditions.
    """
    best = fastest(cells, ["format"])
    if best.empty:
        return f"Nothing measured yet ({note})."
    grown = curves[curves["n"] == curves["n"].max()].set_index("format")["ratio"]
    told = [
        f"{row.speedup:.2f}x ar at {row.format} (tree {row.tree_size}, depth {row.depth}; "
        f"T({curves['n'].max()}) is {grown[row.format]:.1f} T(1))"
        for row in best.itertuples()
    ]
    error = median_error(cells)
    explained = "" if np.isnan(error) else f"; the equation is off by {error:.0%} (median)"
    return f"The best EAGLE-2 tree decodes at {', '.join(told)}{explained}. Measured on {note}."


def _whole(turns: pd.DataFrame) -> pd.DataFrame:
    """Turns in which both decodings had a round."""
    return turns[(turns["n_rounds"] > 0) & (turns["plain_rounds"] > 0)]


def _spread(values: pd.Series, turns: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    """Median of each group under the series' name, quartiles as `low` and `high`."""
    grouped = values.groupby([turns[name] for name in keys], sort=False)
    table = pd.DataFrame({values.name or "draft_ratio": grouped.median()})
    table["low"], table["high"] = grouped.quantile(0.25), grouped.quantile(0.75)
    return table.reset_index()
