"""Runs on disk: one folder per run, one JSON for what was asked, one Parquet per table.

<store>/<config_id>-<utc>/run.json        schema, config, environment, prompts, outputs, audits
                          rounds.parquet  one row per decoding round; times in us since run start
                          spans.parquet   one row per timed phase; round -1 is the prefill
                          tokens.parquet  one row per output token and who proposed it
                          modules.parquet, kernels.parquet, launches.parquet  where asked for:
                                          parts of passes, and what a device ran

<folder>/measure.json                    schema, conditions, what one pass reads
         cost.parquet                    cost curves

The tables are long, their values raw, warm-up rows flagged and not dropped.  A folder appears
whole or not at all: it is written under another name beside its place, then renamed.
"""

import json
import math
import os
import shutil
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

import pandas as pd
from pyarrow import ArrowException, parquet

SCHEMA_VERSION = 1
TABLES = {
    "rounds": {
        "prompt": "int64",
        "round": "int64",
        "warmup": "bool",
        "n_proposed": "int64",
        "n_accepted": "int64",
        "n_emitted": "int64",
        "kv_len": "int64",
        "start_us": "float64",
        "duration_us": "float64",
    },
    "spans": {
        "prompt": "int64",
        "round": "int64",
        "warmup": "bool",
        "phase": "str",
        "level": "str",
        "n_tokens": "int64",
        "n_nodes": "int64",
        "kv_len": "int64",
        "start_us": "float64",
        "duration_us": "float64",
        "device_us": "float64",
    },
    "tokens": {
        "prompt": "int64",
        "round": "int64",
        "position": "int64",
        "token": "int64",
        "piece": "str",
        "source": "str",
    },
}
# tables that a run has when it was asked to record that much
MORE_TABLES = {
    "modules": {
        "prompt": "int64",
        "round": "int64",
        "warmup": "bool",
        "phase": "str",
        "level": "str",
        "module": "str",
        "layer": "int64",
        "n_tokens": "int64",
        "kv_len": "int64",
        "start_us": "float64",
        "duration_us": "float64",
    },
    "kernels": {
        "name": "str",
        "kind": "str",
        "device": "int64",
        "stream": "int64",
        "correlation": "int64",
        "graph_node": "int64",
        "bytes": "int64",
        "start_us": "float64",
        "duration_us": "float64",
    },
    "launches": {
        "name": "str",
        "thread": "int64",
        "correlation": "int64",
        "start_us": "float64",
        "duration_us": "float64",
    },
}
# columns that older tables lack, and what reading fills in
_FILLED = {"spans": {"n_nodes": -1}}
# one row per (device, model, scheme, context, n)
COSTS = {
    "device": "str",
    "model": "str",
    "scheme": "str",
    "context": "int64",  # tokens stored before the pass
    "n": "int64",  # tokens of the pass
    "time_us": "float64",  # median
    "low_us": "float64",  # quartiles
    "high_us": "float64",
    "graph": "bool",  # one CUDA graph, so that launches cost the host nothing
    "repeats": "int64",
}
# filled in on reading where a table was written before they were
COSTS_MORE = {
    "median_low_us": "float64",  # 95 % interval of the median
    "median_high_us": "float64",
    "plain_us": "float64",  # the one-token pass in the very same turns, timed several times in each
    "ratio": "float64",  # time over plain, paired by turn: what comparisons use
    "ratio_low": "float64",  # 95 % interval of its median
    "ratio_high": "float64",
    "unstable": "bool",  # spread or drift beyond `MOST_SPREAD`
    "cold": "bool",  # other memory was read before every pass
}
# quartiles further apart, or halves of the turns, than this share of the median: not a firm number
MOST_SPREAD = 0.2
REQUIRED = ("kind", "config", "config_id", "method", "format", "environment", "prompts", "outputs")
OPTIONAL = {"prefill": {}, "audits": [], "summary": {}}

_FITS = {
    "int64": pd.api.types.is_integer_dtype,
    "bool": pd.api.types.is_bool_dtype,
    "float64": pd.api.types.is_numeric_dtype,
    "str": pd.api.types.is_string_dtype,
}
_ALL_TABLES = TABLES | MORE_TABLES
_STAMP = "%Y%m%dT%H%M%S"


def write_run(folder: Path | str, head: dict, tables: dict[str, pd.DataFrame]) -> Path:
    """Write one run, whole or not at all.

    Args:
        folder: where; must not exist yet.
        head: what goes into `run.json`, see `REQUIRED`; numbers that are not finite become null.
        tables: `rounds`, `spans` and `tokens` with exactly the columns of `TABLES`, and any of
            `MORE_TABLES`.

    Raises:
        ValueError: a missing entry, a foreign column or type, counts that contradict each other,
            or a folder that exists.
    """
    folder = Path(folder)
    if folder.exists():
        raise ValueError(f"{folder} exists already; a run is never written over another")
    text = json.dumps(_checked_head(head), indent=2, allow_nan=False) + "\n"
    if TABLES.keys() - tables.keys() or tables.keys() - _ALL_TABLES.keys():
        raise ValueError(
            f"a run has the tables {list(TABLES)} and may have {list(MORE_TABLES)}, "
            f"got {list(tables)}"
        )
    tables = {name: _checked_table(name, tables[name]) for name in _ALL_TABLES if name in tables}
    _check_counts(tables["rounds"])
    unfinished = folder.with_name(f".unfinished-{folder.name}-{uuid4().hex[:8]}")
    try:
        unfinished.mkdir(parents=True)
        for name, table in tables.items():
            table.to_parquet(unfinished / f"{name}.parquet", index=False)
        (unfinished / "run.json").write_text(text, encoding="utf-8")
        unfinished.rename(folder)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    return folder


def write_new_run(
    root: Path | str, config_id: str, head: dict, tables: dict[str, pd.DataFrame]
) -> Path:
    """Write one run under a name that no run has; as `write_run` besides."""
    while True:
        folder = new_folder(root, config_id)
        try:
            return write_run(folder, head, tables)
        except (OSError, ValueError):
            # another process may have taken the name since
            if not folder.exists():
                raise


def read_run(folder: Path | str) -> tuple[dict, dict[str, pd.DataFrame]]:
    """Read one run: what `run.json` says, and its tables, those of `MORE_TABLES` where they are.

    Raises:
        ValueError: one line that says which file is missing, cut off or of another schema.
    """
    head = read_head(folder)
    tables = {}
    for name in _ALL_TABLES:
        path = Path(folder) / f"{name}.parquet"
        if name in TABLES or path.exists():
            tables[name] = _opened(path, pd.read_parquet)
            _check_columns(str(path), name, list(tables[name].columns))
            tables[name] = _filled(name, tables[name])
    return head, tables


def read_head(folder: Path | str) -> dict:
    """Read `run.json` alone; refuses a schema this code does not know."""
    path = Path(folder) / "run.json"
    head = _versioned(path)
    if missing := [name for name in (*REQUIRED, *OPTIONAL) if name not in head]:
        raise ValueError(f"{path} lacks {', '.join(missing)}")
    return head


def _versioned(path: Path) -> dict:
    """A JSON object of the schema this code knows."""
    head = _opened(path, lambda path: json.loads(path.read_text(encoding="utf-8")))
    schema = head.get("schema") if isinstance(head, dict) else None
    if schema != SCHEMA_VERSION:
        raise ValueError(f"{path}: schema {schema}, this code reads {SCHEMA_VERSION}")
    return head


def empty_costs() -> pd.DataFrame:
    """A cost table without rows."""
    kinds = COSTS | COSTS_MORE
    return pd.DataFrame({name: pd.Series(dtype=kind) for name, kind in kinds.items()})


def write_cost(folder: Path, head: dict, table: pd.DataFrame) -> None:
    """Write cost curves and their conditions; each file is replaced whole or not at all.

    Raises:
        ValueError: a column is missing or foreign.
    """
    columns = _cost_columns(list(table.columns))
    if columns is None:
        raise ValueError(
            f"a cost table has the columns {[*COSTS, *COSTS_MORE]}, got {list(table.columns)}"
        )
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"schema": SCHEMA_VERSION} | head, indent=2, allow_nan=False) + "\n"
    (folder / "measure.tmp").write_text(text, encoding="utf-8")
    table.astype(columns).to_parquet(folder / "cost.tmp", index=False)
    os.replace(folder / "cost.tmp", folder / "cost.parquet")
    os.replace(folder / "measure.tmp", folder / "measure.json")


def read_cost(folder: Path | str) -> tuple[dict, pd.DataFrame]:
    """Conditions and curves of a folder that `write_cost` wrote.

    Returns:
        the head, and a table with the columns of `COSTS` and `COSTS_MORE`.

    Raises:
        ValueError: a file is missing, damaged, or of a schema this code does not know.
    """
    folder = Path(folder)
    head = _opened(
        folder / "measure.json", lambda path: json.loads(path.read_text(encoding="utf-8"))
    )
    if head.get("schema") != SCHEMA_VERSION:
        raise ValueError(
            f"{folder}: schema {head.get('schema')!r}, this version reads {SCHEMA_VERSION}"
        )
    table = _opened(folder / "cost.parquet", pd.read_parquet)
    if _cost_columns(list(table.columns)) is None:
        raise ValueError(f"{folder}: a cost table has the columns {[*COSTS, *COSTS_MORE]}")
    return head, whole_costs(table)


def _cost_columns(found: list[str]) -> dict[str, str] | None:
    return next((kinds for kinds in (COSTS | COSTS_MORE, COSTS) if found == list(kinds)), None)


def whole_costs(table: pd.DataFrame) -> pd.DataFrame:
    """A cost table with `COSTS_MORE`; what was not measured follows from median and quartiles.

    The median's interval is that of a normal spread, 1.82 quartile ranges over the root of the
    number of turns; the plain step is the curve's own one-token pass (NaN without), and what
    drifts is not seen.
    """
    if "ratio" in table:
        return table
    spread = table["high_us"] - table["low_us"]
    half = 1.82 * spread / table["repeats"] ** 0.5
    low, high = (table["time_us"] - half).clip(lower=0), table["time_us"] + half
    curve = ["device", "model", "scheme", "context"]
    ones = table[table["n"] == 1].drop_duplicates(curve)[[*curve, "time_us"]]
    plain = table[curve].merge(ones, on=curve, how="left")["time_us"].to_numpy()
    ratios = {"ratio": table["time_us"], "ratio_low": low, "ratio_high": high}
    found = {"median_low_us": low, "median_high_us": high, "plain_us": plain}
    found |= {name: times / plain for name, times in ratios.items()}
    found |= {"unstable": spread > MOST_SPREAD * table["time_us"], "cold": table["graph"]}
    return table.assign(**found).astype(COSTS | COSTS_MORE)


def device_name(conditions: dict) -> str:
    """What cost tables and figures call the device."""
    if conditions.get("gpu"):
        return conditions["gpu"]
    return f"{conditions['cpu']}, {conditions['threads']} threads"


def threads_text(n: int) -> str:
    """ "1 thread", "2 threads"."""
    return f"{n} thread{'s' * (n != 1)}"


def replace_file(path: Path, write) -> None:
    """Let `write(beside)` make a file beside its place, then put it there: whole or not at all."""
    beside = path.with_name(f".unfinished-{path.name}")
    write(beside)
    os.replace(beside, path)


def read_head_file(path: Path, schema: int, what: str) -> dict:
    """A JSON object that says what a folder holds.

    Args:
        schema: the one this code knows.
        what: the folder would hold, for errors: "study", ...

    Raises:
        ValueError: it is missing, damaged or of another schema.
    """
    try:
        head = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{path.parent} holds no {what}: no {path.name}") from None
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is damaged or cut off: {error}") from None
    found = head.get("schema") if isinstance(head, dict) else None
    if found != schema:
        raise ValueError(f"{path}: schema {found}, this code reads {schema}")
    return head


def store_root() -> Path:
    """Return where users' runs go: $HSPEC_STORE, else ./hspec_runs."""
    return Path(os.environ.get("HSPEC_STORE") or "hspec_runs")


def new_folder(root: Path | str, config_id: str) -> Path:
    """Return a name `<config_id>-<utc>` that no run has; creates nothing, so ask when you write."""
    name = f"{config_id}-{datetime.now(UTC).strftime(_STAMP)}"
    folder, number = Path(root) / name, 1
    while folder.exists():
        number += 1
        folder = Path(root) / f"{name}-{number}"
    return folder


def find(root: Path | str, config_id: str, environment_key: dict | None = None) -> Path | None:
    """Return the newest readable run of a config, or None.

    Args:
        root: the store.
        config_id: which config.
        environment_key: entries of the environment that must agree, e.g. `{"device": "cpu"}`.
    """
    for folder in _folders(root):
        head = None if _problem(folder) else read_head(folder)
        if head and head["config_id"] == config_id:
            found = head["environment"]
            wanted = environment_key or {}
            if all(found.get(name) == value for name, value in wanted.items()):
                return folder
    return None


def list_runs(root: Path | str) -> pd.DataFrame:
    """Return one row per run folder, newest first; `problem` says why one cannot be read."""
    columns = ["run", "kind", "config_id", "method", "format", "device", "threads", "date"]
    rows = []
    for folder in _folders(root):
        problem = _problem(folder)
        head = {} if problem else read_head(folder)
        known = {**head.get("environment", {}), **head}
        rows.append([folder.name, *(known.get(name) for name in columns[1:]), problem])
    return pd.DataFrame(rows, columns=[*columns, "problem"])


def _folders(root: Path | str) -> list[Path]:
    root = Path(root)
    if not root.is_dir():
        return []
    runs = [path for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")]
    return sorted(runs, key=_age, reverse=True)


def _age(folder: Path) -> tuple:
    # <config_id>-<stamp>[-<number>]: by time, then by number within the second
    parts = folder.name.split("-")
    number = int(parts[2]) if len(parts) > 2 and parts[2].isdecimal() else 1
    return parts[1] if len(parts) > 1 else "", number, folder.name


def _problem(folder: Path) -> str:
    """Say in one line why a run cannot be read; reads `run.json` and the tables' footers."""
    try:
        read_head(folder)
        for name in TABLES:
            path = folder / f"{name}.parquet"
            _check_columns(str(path), name, _opened(path, parquet.read_schema).names)
    except ValueError as error:
        return str(error)
    return ""


def _opened(path: Path, read):
    """Return `read(path)`; whatever goes wrong becomes one line that names the file."""
    try:
        return read(path)
    except FileNotFoundError as error:
        raise ValueError(f"{path} is missing") from error
    except (OSError, ValueError, ArrowException) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{path} is damaged or cut off: {reason}") from error


def _checked_head(head: dict) -> dict:
    if missing := [name for name in REQUIRED if name not in head]:
        raise ValueError(f"run.json needs {', '.join(missing)}; got {', '.join(head)}")
    if len(head["prompts"]) != len(head["outputs"]):
        count = f"{len(head['prompts'])} prompts and {len(head['outputs'])} outputs"
        raise ValueError(f"run.json needs one output per prompt, got {count}")
    return json_value({**OPTIONAL, **head, "schema": SCHEMA_VERSION})


def json_value(value):
    """Turn numpy's numbers, tuples and numbers that are not finite into what JSON has."""
    if isinstance(value, dict):
        return {str(name): json_value(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [json_value(entry) for entry in value]
    if hasattr(value, "item"):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _check_columns(where: str, name: str, columns: list[str]) -> None:
    needed = list(_ALL_TABLES[name])
    older = [column for column in needed if column not in _FILLED.get(name, {})]
    if columns not in (needed, older):
        raise ValueError(f"{where} needs columns {needed}, got {columns}")


def _filled(name: str, table: pd.DataFrame) -> pd.DataFrame:
    missing = {k: v for k, v in _FILLED.get(name, {}).items() if k not in table}
    return table.assign(**missing)[list(_ALL_TABLES[name])] if missing else table


def _checked_table(name: str, table: pd.DataFrame) -> pd.DataFrame:
    _check_columns(name, name, list(table.columns))
    table = _filled(name, table)
    for column, kind in _ALL_TABLES[name].items():
        # a table without rows has no types of its own
        if len(table) and not _FITS[kind](table[column]):
            raise ValueError(f"{name}.{column} must be {kind}, got {table[column].dtype}")
    return table.astype(_ALL_TABLES[name])


def _check_counts(rounds: pd.DataFrame) -> None:
    """Refuse rounds measured twice, or not emitting n_accepted + 1; a prompt's last may be cut."""
    measured = rounds[~rounds["warmup"]]
    if (twice := measured.duplicated(["prompt", "round"])).any():
        row = measured[twice].iloc[0]
        raise ValueError(
            f"round {row['round']} of prompt {row['prompt']} stands twice; a run measures each "
            "prompt once, repeats are runs of their own or marked warmup"
        )
    goes_on = rounds["round"].shift(-1) == rounds["round"] + 1
    for name in ("prompt", "warmup"):
        goes_on &= rounds[name].shift(-1) == rounds[name]
    most = rounds["n_accepted"] + 1
    wrong = (rounds["n_emitted"] > most) | (goes_on & (rounds["n_emitted"] < most))
    wrong |= rounds["n_accepted"] > rounds["n_proposed"]
    if wrong.any():
        row = rounds[wrong].iloc[0]
        counts = ", ".join(f"{n} {row[n]}" for n in ("n_proposed", "n_accepted", "n_emitted"))
        raise ValueError(
            f"round {row['round']} of prompt {row['prompt']} has {counts}; "
            "n_emitted must be n_accepted + 1 (less only in a prompt's last round)"
        )
