"""Rounds in the order in which they ran, from small tables by hand."""

import numpy as np
import pandas as pd
import pytest

from hspec_lab import store
from hspec_lab.report import in_order_of_time, rounds_over_time


def test_means_over_neighbours_are_sums_over_sums_and_warm_up_does_not_count():
    rounds = pd.DataFrame(
        {"prompt": 0, "round": range(5), "warmup": [True] + [False] * 4}
        | {"n_emitted": [9, 1, 0, 3, 4], "start_us": [0.0, 30, 20, 10, 40]}
        | {"duration_us": [1.0, 100, 50, 300, 200]}
    )
    found = in_order_of_time(rounds)
    assert found["round"].tolist() == [3, 2, 1, 4], "in the order of their start"
    assert found["us_per_emitted"].tolist()[0] == 100 and np.isnan(found["us_per_emitted"][1])
    assert found["mean_emitted"].tolist() == [3, 0, 1, 4], "too few rounds for a wider mean"
    later = [rounds[1:].assign(start_us=rounds["start_us"] + 50 * n) for n in range(8)]
    many = pd.concat(later)
    smooth = in_order_of_time(many)
    assert smooth["mean_us_per_emitted"][4] == pytest.approx(550 / 7), "rounds of 4, 3 and 0 tokens"


def test_a_hiccup_leaves_the_picture_and_is_counted():
    n = 200
    rounds = pd.DataFrame({"prompt": np.arange(n) // 50, "round": np.arange(n) % 50})
    rounds = rounds.assign(
        warmup=False, n_emitted=1, start_us=np.arange(n) * 1.0, duration_us=100.0
    )
    rounds.loc[77, "duration_us"] = 9e4
    figure = rounds_over_time(in_order_of_time(rounds, window=1), method="chain")
    assert "above the lower panel" not in figure.layout.title.text, "a mean shows it"
    figure = rounds_over_time(in_order_of_time(rounds, window=20), method="chain")
    assert "above the lower panel: 1 of 200 rounds" in figure.layout.title.text
    assert len(figure.layout.shapes) == 3, "lines between four prompts"


def test_nothing_to_draw_is_said():
    figure = rounds_over_time(in_order_of_time(pd.DataFrame(columns=list(store.TABLES["rounds"]))))
    assert "nothing measured yet" in [one.text for one in figure.layout.annotations]
