"""One order for equal scores: the lower id, the earlier node, wherever the tie stands."""

import numpy as np
import pytest
import torch

from hspec_lab.draft.eagle2 import best_first, stable_top_k


def test_ties_go_to_the_lower_id_also_across_the_border():
    log_p = torch.full((2, 200), -5.0)
    log_p[0, [150, 40, 90]] = -1.0
    log_p[1, 199] = -1.0
    values, ids = stable_top_k(log_p, 4)
    assert ids.tolist() == [[40, 90, 150, 0], [199, 0, 1, 2]]
    assert values[0].tolist() == [-1, -1, -1, -5]


@pytest.mark.parametrize("k", [1, 4, 8, 63, 64, 100])
def test_top_k_is_the_start_of_a_stable_sort_however_many_values_are_equal(k):
    generator = torch.Generator().manual_seed(k)
    for levels in (1, 2, 5, 40):  # few distinct values: ties within and across the border
        log_p = -torch.randint(0, levels, (6, 64), generator=generator).float()
        values, ids = stable_top_k(log_p, k)
        in_order = torch.sort(log_p, dim=-1, descending=True, stable=True)
        assert ids.tolist() == in_order.indices[:, :k].tolist()
        assert values.tolist() == in_order.values[:, :k].tolist()


def test_best_first_prefers_the_earlier_of_two_equal_scores():
    assert best_first(np.array([-2.0, -1.0, -2.0, -1.0], np.float32), 3).tolist() == [1, 3, 0]
