"""Every chosen configuration compiles for three GPU generations within its budgets."""

import json
import os
import subprocess
import sys

import pytest

from hspec_kernels.case import compile_cases, operations


@pytest.fixture(scope="module")
def compiled() -> list[dict]:
    """In a process of its own: interpreted kernels cannot be compiled."""
    environment = os.environ | {"TRITON_DEFAULT_FP_FUSION": "1"}
    environment.pop("TRITON_INTERPRET", None)
    done = subprocess.run(
        [sys.executable, "-m", "hspec_kernels.compiled", "--json"],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.stdout, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.slow
def test_every_operation_compiles_for_every_target_within_its_budgets(compiled):
    broken = [row for row in compiled if row["broken"]]
    assert not broken, [(row["operation"], row["case"], row["target"]) for row in broken]
    wanted = {
        (operation, case.name, target)
        for operation in operations()
        for case in compile_cases(operation)
        if case.chosen
        for target in case.targets
    }
    assert {(row["operation"], row["case"], row["target"]) for row in compiled} == wanted
    assert all(row["spill_bytes"] == 0 and row["registers"] > 0 for row in compiled)


# what turns nibbles into numbers: sub and multiply-add on pairs of halves
WIDENING = ("HADD2", "HFMA2")


@pytest.mark.slow
@pytest.mark.parametrize("target", [80, 90])
def test_unpacking_4_bit_weights_costs_the_same_however_many_rows(compiled, target):
    rows = [
        row
        for row in compiled
        if row["operation"] == "w4a16_matmul" and row["target"] == target and "fp16" in row["case"]
    ]
    assert len(rows) >= 3
    weights = {
        case.name: case.facts["weights"] for case in compile_cases("w4a16_matmul") if case.chosen
    }
    # a thread's, for each weight of its tile: pairs of halves, so half an instruction each
    per_weight = {
        32
        * row["num_warps"]
        * sum(row["instructions"][name] for name in WIDENING)
        / weights[row["case"]]
        for row in rows
    }
    assert per_weight == {1.0}
    assert all(row["loop_per_weight"] < 5 for row in rows)
