"""What the project's kernels are and cost, read without running any.

No torch and no triton: sources are parsed, compiled facts come from the committed page
`docs/kernels.md`, times from counted bytes and operations and a device's peaks.  `trial` alone runs
a kernel, in Triton's interpreter, in a process of its own.
"""

import ast
import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd

from hspec_lab.device import load
from hspec_lab.roofline import families_for, pass_table, split_reference
from hspec_lab.roofline.work import product

# what a kernel's docstring says of itself
_FACTS = ("cost", "error", "rows", "source")
_FACT = re.compile(r"^    (\w+) {2,}(.*(?:\n {9,}.*)*)", re.M)
_NUMBERS = ("registers", "spilled", "shared", "warps", "programs per SM", "unpacking")
_NUMBERS += ("tensor core", "all instructions", "of the loop, a weight")
_TRIAL_S = 120


def folder() -> Path:
    """Where the kernels' sources lie; ValueError where the package has none."""
    spec = find_spec("hspec_kernels")
    if spec is None or not spec.submodule_search_locations:
        raise ValueError("no package hspec_kernels here: install the project with pip install -e .")
    return Path(spec.submodule_search_locations[0])


def operations() -> pd.DataFrame:
    """One row an operation: operation, what (its first line), cost, error, rows, source, lines."""
    rows = []
    for path in sorted(folder().glob("[a-z]*.py")):
        text = path.read_text(encoding="utf-8")
        told = ast.get_docstring(ast.parse(text)) or ""
        facts = {name: " ".join(value.split()) for name, value in _FACT.findall(told)}
        if "cost" not in facts:
            continue
        named = {"operation": path.stem, "what": told.partition("\n")[0].rstrip(".")}
        known = {name: facts.get(name, "") for name in _FACTS}
        rows.append(named | known | {"lines": len(text.splitlines())})
    return pd.DataFrame(rows)


def as_markdown(table: pd.DataFrame, *columns: str) -> str:
    """Columns of a table as a Markdown table, long texts unbroken."""
    shown = table[list(columns)].astype(str)
    shown = shown.replace(r"([*_|<`])", r"\\\1", regex=True)
    rows = [" | ".join(row) for row in shown.itertuples(index=False)]
    ruled = [" | ".join(columns), " | ".join(["---"] * len(columns)), *rows]
    return "\n".join(f"| {row} |" for row in ruled)


def listing(operation: str, *names: str) -> str:
    """Functions of a kernel's file as a Markdown listing, in the order asked for.

    Raises:
        ValueError: no such operation, or no such function in its file; says which there are.
    """
    path = folder() / f"{operation}.py"
    if not path.is_file():
        known = ", ".join(operations()["operation"])
        raise ValueError(f"no kernel {operation!r}; there are {known}")
    text = path.read_text(encoding="utf-8")
    found = {node.name: node for node in ast.parse(text).body if isinstance(node, ast.FunctionDef)}
    if missing := [name for name in names if name not in found]:
        raise ValueError(f"{path.name} has no {', '.join(missing)}; it has {', '.join(found)}")
    lines = text.splitlines()
    parts = []
    for name in names:
        node = found[name]
        first = min([node.lineno, *(one.lineno for one in node.decorator_list)])
        parts.append("\n".join(lines[first - 1 : node.end_lineno]))
    return "```python\n" + "\n\n\n".join(parts) + "\n```"


def compiled(page: Path | str | None = None) -> pd.DataFrame:
    """The committed record of compiled kernels, one row a configuration and target.

    Args:
        page: made by `python -m hspec_kernels.compiled --page`; None: `docs/kernels.md` beside the
            kernels, which a source checkout has.

    Returns:
        operation, configuration, target, and as numbers registers (a thread), spilled (bytes a
        thread), shared (bytes a program), warps, programs per SM, unpacking, tensor core, all
        instructions, "of the loop, a weight" (NaN where nothing counts weights); `attrs` for a
        figure.

    Raises:
        ValueError: the page cannot be read or holds no such table.
    """
    page = Path(page) if page is not None else folder().resolve().parent / "docs" / "kernels.md"
    try:
        text = page.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{page}: cannot be read ({error})") from None
    rows = [
        [cell.strip() for cell in line.strip().strip("|").split("|")]
        for line in text.splitlines()
        if line.startswith("|")
    ]
    if not rows or rows[0][:3] != ["operation", "configuration", "target"]:
        raise ValueError(f"{page}: holds no table of operation, configuration, target, ...")
    table = pd.DataFrame(rows[2:], columns=rows[0])
    for name in _NUMBERS:
        table[name] = pd.to_numeric(table[name].replace("", np.nan))
    made = re.search(r"with (Triton [\d.]+[\d])", text)
    note = f"{made[1] if made else 'Triton'}, ahead of time, without a GPU; {page.name}"
    table.attrs = {"origin": "compiled", "note": note}
    return table


def worst(table: pd.DataFrame, target: str = "sm_90") -> pd.DataFrame:
    """Each operation's most demanding configuration on a target, most registers first.

    Returns:
        operation, n_configurations, registers, spilled, shared_kb, tensor_core (whether any of its
        configurations has such instructions).
    """
    rows = table[table["target"] == target].groupby("operation")
    found = pd.DataFrame(
        {
            "n_configurations": rows.size(),
            "registers": rows["registers"].max(),
            "spilled": rows["spilled"].max(),
            "shared_kb": rows["shared"].max() / 1024,
            "tensor_core": rows["tensor core"].max() > 0,
        }
    )
    return found.sort_values("registers", ascending=False, kind="stable").reset_index()


def ceilings(
    device: str,
    model: str,
    formats: Sequence[str],
    *,
    matrix: str = "gate_up",
    rows: Sequence[int] = tuple(range(1, 129)),
) -> pd.DataFrame:
    """What one product of a layer takes by its three roofs, over rows.

    Args:
        device: a name that ships, or a TOML file.
        model: a shape, as `shape:llama-3-8b`.
        matrix: one of the shape's products: qkv, o, gate_up, down.

    Returns:
        format, n, bound (memory, compute, unpacking), us; each over the share of the peak that is
        assumed or fitted.  `attrs` for a figure.
    """
    known, parts = load(device), []
    families = families_for(known)
    for format in formats:
        shape, scheme = split_reference(f"{model}@{format}")
        if matrix not in shape.matrices:
            raise ValueError(f"{model} has {', '.join(shape.matrices)}; got {matrix!r}")
        size = shape.matrices[matrix]
        work = product(matrix, size, np.asarray(rows), scheme, known.kind, families)
        for bound, us in zip(
            ("memory", "compute", "unpacking"), work.ceilings_us(known), strict=True
        ):
            parts.append(
                pd.DataFrame({"format": format, "n": list(rows), "bound": bound, "us": us})
            )
    table = pd.concat(parts, ignore_index=True)
    told = f"{known.title}, {matrix} of {model}, {size[0]} x {size[1]}, {families.note}"
    table.attrs = {"origin": "roofline", "note": told}
    return table


def one_pass(device: str, reference: str, n: int, *, context: int = 512) -> pd.DataFrame:
    """A whole pass over n tokens by its operations: mb, gflop, us, share and what each waits for.

    Args:
        reference: `where@format`.
    """
    known, (shape, scheme) = load(device), split_reference(reference)
    table = pass_table(shape, scheme, [n], context, known)
    numbers = {"mb": table["bytes"] / 1e6, "gflop": table["flops"] / 1e9, "us": table["us"]}
    found = pd.DataFrame({"module": table["module"]} | numbers)
    found["share"] = found["us"] / found["us"].sum()
    found["bound_by"] = table["bound_by"]
    return found.sort_values("us", ascending=False, kind="stable", ignore_index=True)


def trial(operation: str = "accept_greedy_tree") -> pd.DataFrame:
    """Run a kernel in Triton's interpreter beside its definition, in a process of its own.

    Returns:
        one row a case: case, difference (0 where integers agree; else the ratio of root
        mean squares), tolerance, agrees.

    Raises:
        ValueError: triton is missing, the operation has no cases, or the process failed.
    """
    command = [sys.executable, "-m", "hspec_lab.kernel_trial", operation]
    # kernels are interpreted only where the variable is there before triton is imported
    env = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=_TRIAL_S)
    if done.returncode:
        why = (done.stderr.strip() or "no word").splitlines()[-1]
        raise ValueError(f"{operation} could not be tried: {why}")
    table = pd.DataFrame(json.loads(done.stdout.splitlines()[-1]))
    table.attrs = {"origin": "interpreted", "note": "Triton's interpreter on a CPU, no time"}
    return table


def take_away(found: pd.DataFrame, tried: pd.DataFrame, table: pd.DataFrame) -> str:
    """One sentence with numbers and their condition, as Markdown.

    Args:
        found: from `operations`.
        tried: from `trial`.
        table: from `compiled`.
    """
    n_made = len(table[["operation", "configuration"]].drop_duplicates())
    targets, spilled = table["target"].nunique(), int((table["spilled"] > 0).sum())
    per_weight = table[(table["target"] == "sm_90") & (table["operation"] == "w4a16_matmul")]
    per_weight = per_weight["of the loop, a weight"]
    return (
        f"{len(found)} operations are each one file with a definition beside its kernel; their "
        f"**{n_made}** configurations, compiled for up to {targets} architectures, spill registers "
        f"in **{spilled}** of {len(table)} cases, a 4-bit weight costs {per_weight.min():.1f} to "
        f"{per_weight.max():.1f} instructions on an H100, and {int(tried['agrees'].sum())} of "
        f"{len(tried)} interpreted cases agree with their definition; no time of a GPU was "
        "measured here."
    )
