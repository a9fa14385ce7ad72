"""Calibration: what was put into measurements is found in them, and what is left is told."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from hspec_lab import device as devices
from hspec_lab import store
from hspec_lab.roofline import calibrate, families_for, pass_us, split_reference, stage_costs

A100 = devices.load("a100-80gb")
CPU = devices.load("epyc-zen5-2-cores")
STUDY = Path(__file__).parent.parent / "profiles" / "studies" / "compat-zoo"
MODELS = ("llama-3-8b@w16a16", "llama-3-8b@w4a16-g128", "llama-3.2-1b@w16a16", "llama-3.2-1b@w8a8")


def truth():
    """Kernels that reach other shares than assumed, and dearer launches."""
    families = replace(families_for(A100), launch_us=3.5)
    families = families.changed("w16a16", bandwidth_share=0.9, peak_share=0.45)
    families = families.changed("w4a16", bandwidth_share=0.62, peak_share=0.45)
    return families.changed("w8a8", bandwidth_share=0.7, peak_share=0.5)


def measured(families, noise=0.0, rows=range(1, 129), contexts=(512,)):
    """A table of costs that such kernels would have left."""
    random, parts = np.random.default_rng(0), []
    for model in MODELS:
        where, _, scheme = f"shape:{model}".rpartition("@")
        for context in contexts:
            us = pass_us(*split_reference(f"shape:{model}"), list(rows), context, A100, families)
            us = us * np.exp(noise * random.standard_normal(len(us)))
            columns = {"device": "d", "model": where, "scheme": scheme, "context": context}
            parts.append(pd.DataFrame(columns | {"n": list(rows), "time_us": us}))
    return pd.concat(parts, ignore_index=True)


def assert_found(found, rel):
    wanted = truth()
    assert found.families.launch_us == pytest.approx(wanted.launch_us, rel=rel)
    for key in ("w16a16", "w4a16", "w8a8"):
        ours, theirs = found.families.products[key], wanted.products[key]
        assert ours.bandwidth_share == pytest.approx(theirs.bandwidth_share, rel=rel), key
        if key == "w4a16":  # the others are not bound by their peaks at up to 128 rows
            assert ours.peak_share == pytest.approx(theirs.peak_share, rel=rel), key


def test_shares_and_launches_that_made_the_curves_are_found_again():
    found = calibrate(A100, measured(truth()))
    assert_found(found, rel=0.01)
    assert found.median_error < 0.002 and found.n_measurements == 4 * 128


def test_noise_and_outliers_do_not_lead_astray():
    table = measured(truth(), noise=0.03, contexts=(0, 2048))
    # every twelfth was disturbed by something else on the machine
    late = np.arange(len(table)) % 12 == 5
    table["time_us"] = table["time_us"].to_numpy() * np.where(late, 2.5, 1.0)
    found = calibrate(A100, table)
    assert_found(found, rel=0.08)
    assert 0.01 < found.median_error < 0.04


def test_the_note_says_how_many_numbers_were_fitted_to_how_many():
    found = calibrate(A100, measured(truth(), rows=[1, 8, 64]))
    # launches, and two shares of w16a16, w4a16, w8a8 and, for an output layer, w8a16
    assert len(found.fitted) == 9 and found.n_measurements == 12
    assert "9 numbers fitted to 12 measurements, median error left" in found.note
    assert "llama-3-8b@w4a16-g128" in found.note and "a100-80gb" in found.note
    assert found.fitted["launch_us"][0] == families_for(A100).launch_us


def test_calibrated_costs_say_so_and_follow_the_measurements():
    found = calibrate(A100, measured(truth()))
    costs = stage_costs(A100, "shape:llama-3-8b@w4a16-g128", calibration=found)
    assert costs.origin == "calibrated" and costs.note == found.note
    shape, scheme = split_reference("shape:llama-3-8b@w4a16-g128")
    wanted = pass_us(shape, scheme, np.arange(1, 129), 512, A100, truth())
    assert costs.target_us[1:] == pytest.approx(wanted, rel=0.01)
    assert costs.spread["target_us"] == found.median_error
    assert not any("extrapolated" in told for told in costs.warnings)


def test_what_was_not_measured_is_labelled():
    found = calibrate(A100, measured(truth(), rows=[1, 16, 64], contexts=(256, 1024)))
    told = stage_costs(A100, "shape:qwen3-8b@w4a8-g128", context=4096, calibration=found).warnings
    assert any("context 4096 is extrapolated, measured at 256 to 1024" in one for one in told)
    assert any("no w4a8 kernel was measured" in one for one in told)
    assert any("qwen3-8b was not measured" in one for one in told)
    assert any("verdict, commit and gap are assumed" in one for one in told)


def test_measured_stages_give_verdict_commit_gap_and_what_a_draft_costs_beside_products():
    target = "shape:llama-3-8b@w4a16-g128"
    modelled = stage_costs(A100, target, families=truth(), top_k=10, depth=6)
    costs = replace(
        modelled,
        origin="measured",
        accept_us=np.full(129, 11.0),
        commit_us=12.0,
        gap_us=13.0,
        draft_us=modelled.draft_us + 50.0 * np.arange(7),
    )
    found = calibrate(A100, costs, families=truth())
    ours = found.families
    assert (ours.accept_us, ours.commit_us, ours.gap_us) == (11.0, 12.0, 13.0)
    assert ours.head_us == pytest.approx(50.0, rel=0.02)
    again = stage_costs(A100, target, top_k=10, depth=6, calibration=found)
    assert again.draft_us[1:] == pytest.approx(costs.draft_us[1:], rel=0.01)
    assert not any("verdict" in told for told in again.warnings)


def test_committed_curves_of_a_cpu_are_met():
    table = store.read_cost(STUDY)[1]
    found = calibrate(CPU, table)
    assert found.n_measurements == len(table) and len(found.fitted) == 10
    assert found.median_error < 0.04
    one = found.errors[found.errors["n"] == 1]["error"].abs()
    assert one.max() < 0.4 and one.median() < 0.1
    costs = stage_costs(CPU, "zoo:target@w4a16-g128", context=320, calibration=found)
    curve = table[table["scheme"] == "w4a16-g128"].set_index("n")["time_us"]
    ratio = costs.target_us[1 : len(curve) + 1] / curve.to_numpy()
    assert np.median(np.abs(ratio - 1)) < 0.05


def test_weights_that_came_from_a_cache_are_told_where_a_model_is_larger():
    found = calibrate(CPU, store.read_cost(STUDY)[1])
    told = stage_costs(CPU, "shape:llama-3.2-1b@w4a16-g128", calibration=found).warnings
    assert any("weights came from a cache" in one for one in told)


def refused_both(table):
    calibration = calibrate(A100, table)
    stage_costs(A100, "shape:qwen3-8b@w8a8", families=truth(), calibration=calibration)


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda table: calibrate(A100, table.iloc[:0]), "nothing measured"),
        (lambda table: calibrate(A100, []), "nothing measured"),
        (lambda table: calibrate(A100, pd.concat([table, table.assign(device="e")])), "d, e"),
        (lambda table: calibrate(A100, stage_costs(A100, "shape:qwen3-8b@w8a8")), "are roofline"),
        (
            lambda table: stage_costs(CPU, "zoo:target@fp32", calibration=calibrate(A100, table)),
            "the calibration is of a100-80gb, the device is epyc-zen5-2-cores",
        ),
        (refused_both, "give families or a calibration"),
    ],
)
def test_bad_measurements_are_told_in_one_line(call, told):
    with pytest.raises(ValueError, match=told):
        call(measured(truth(), rows=[1, 4]))
