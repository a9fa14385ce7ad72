"""Layers by importance, and widths that stay within a target average."""

import random

import pytest
import torch

from hspec_lab.quantize.allocate import allocate_by_score, lim_scores, zd_scores


def test_lim_is_minus_the_cosine_of_input_and_output():
    rows = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    turned = torch.tensor([[0.0, 3.0], [1.0, 0.0]])
    half = torch.tensor([[2.0, 0.0], [-1.0, 0.0]])
    scores = lim_scores([rows, rows, rows, rows], [3 * rows, turned, -rows, half])
    assert scores == pytest.approx([-1, 0, 1, -0.5], abs=1e-6)


def test_lim_counts_every_row_alike_however_long():
    rows = torch.tensor([[1.0, 0.0], [1000.0, 0.0]])
    assert lim_scores([rows], [torch.tensor([[0.0, 1.0], [5.0, 0.0]])]) == pytest.approx([-0.5])


def test_lim_refuses_rows_that_do_not_belong_together():
    with pytest.raises(ValueError, match=r"\[\[4, 8\]\] and \[\[4, 6\]\]"):
        lim_scores([torch.zeros(4, 8)], [torch.zeros(4, 6)])
    with pytest.raises(ValueError, match="of one shape"):
        lim_scores([torch.zeros(4, 8)], [])


def test_zd_is_the_share_above_one_deviation():
    # mean 1, deviation 3: only 10 is above 4
    assert zd_scores([torch.zeros(2, 3), torch.tensor([0.0] * 3 + [10.0])]) == 0.1
    # only the upper side counts
    assert zd_scores([torch.tensor([0.0] * 9 + [-10.0])]) == 0
    assert zd_scores([torch.ones(8)]) == 0


def test_zd_takes_mean_and_deviation_over_the_whole_layer():
    small, large = torch.tensor([0.0, 0.1]), torch.tensor([0.0, 100.0, 0.0, 0.0])
    assert zd_scores([small, large]) == pytest.approx(1 / 6)


def test_zd_of_normal_weights_is_the_normal_tail():
    weights = torch.randn(200, 500, generator=torch.Generator().manual_seed(0))
    assert zd_scores([weights[:50], weights[50:]]) == pytest.approx(0.1587, abs=0.004)


def test_the_most_important_layers_are_high():
    widths = allocate_by_score([0.1, 0.9, 0.5, 0.7], [10] * 4, target_bits=3)
    assert widths == [2, 4, 2, 4]


def test_equal_scores_go_by_position_and_widths_may_be_any():
    assert allocate_by_score([1, 1, 1], [5, 5, 5], target_bits=6, bits=(8, 3)) == [8, 3, 3]


def test_a_large_layer_that_does_not_fit_ends_the_order():
    """The third would fit, but would then be high while the more important second is low."""
    assert allocate_by_score([3, 2, 1], [10, 80, 10], target_bits=2.5) == [4, 2, 2]


@pytest.mark.parametrize("n", range(1, 51))
def test_an_average_that_can_be_met_exactly_is(n):
    """n of 50 layers at 4 bits: as written, not as a product rounds (50 * 2.28 < 114)."""
    target = round(2 + 2 * n / 50, 2)
    widths = allocate_by_score(list(range(50)), [1] * 50, target_bits=target)
    assert widths.count(4) == n and sum(widths) / 50 == target


@pytest.mark.parametrize("seed", range(40))
def test_the_target_holds_and_order_is_kept(seed):
    draw = random.Random(seed)
    sizes = [draw.randint(1, 10**9) for _ in range(draw.randint(1, 30))]
    scores = [draw.gauss(0, 1) for _ in sizes]
    high, low = draw.choice([(4, 2), (8, 3), (4, 3)])
    target = draw.uniform(low, high + 0.5)
    widths = allocate_by_score(scores, sizes, target_bits=target, bits=(high, low))
    assert sum(w * n for w, n in zip(widths, sizes, strict=True)) / sum(sizes) <= target
    raised = [s for s, w in zip(scores, widths, strict=True) if w == high]
    lowered = [s for s, w in zip(scores, widths, strict=True) if w == low]
    assert not raised or not lowered or min(raised) > max(lowered)
    if lowered:  # the next in order would have been too much
        used = sum(w * n for w, n in zip(widths, sizes, strict=True))
        used += (high - low) * sizes[scores.index(max(lowered))]
        assert used / sum(sizes) > target


def test_targets_and_scores_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match="1.5 bits is out of reach at widths of 2 and 4"):
        allocate_by_score([1, 2], [1, 1], target_bits=1.5)
    for scores in ([1.0], [1.0, float("nan")]):
        with pytest.raises(ValueError, match="2 layers need as many finite scores"):
            allocate_by_score(scores, [1, 1], target_bits=3)
