"""Weights taken apart into blocks, and the memory slider over several stacks."""

import pytest
import torch

from hspec_lab.quant.stack import Stack
from hspec_lab.quantize.bitstack import block_errors, cut_to, order_blocks, stack_of
from hspec_lab.quantize.calibration import InputSums, output_error

SHAPES = {"qkv": (96, 64), "o": (64, 64), "gate_up": (256, 64), "down": (64, 136)}


def correlated_rows(n, C, seed):
    """Rows whose covariance has a random basis, a decaying spectrum and loud channels."""
    generator = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(C, C, generator=generator)).Q
    spread = torch.arange(1, C + 1).float() ** -0.75
    loud = 1 + 8 * (torch.rand(C, generator=generator) < 0.1)
    return (torch.randn(n, C, generator=generator) * spread) @ basis * loud


def inputs_of(rows):
    sums = InputSums(len(rows))
    sums.add(rows)
    return sums.result()


def unit(R, C, seed):
    weight = torch.randn(R, C, generator=torch.Generator().manual_seed(1000 + seed))
    return weight, inputs_of(correlated_rows(400, C, seed))


@pytest.fixture(scope="module")
def model():
    """Stacks of a layer's units and their errors."""
    stacks, errors = {}, {}
    for seed, (name, shape) in enumerate(SHAPES.items()):
        weight, inputs = unit(*shape, seed)
        stacks[name] = stack_of(weight, inputs, blocks=8, rank=4)
        errors[name] = block_errors(weight, stacks[name], inputs)
    return stacks, errors


@pytest.mark.parametrize("seed", range(10))
def test_the_output_error_falls_with_every_block(seed):
    weight, inputs = unit(80, 64, seed)
    errors = block_errors(weight, stack_of(weight, inputs, blocks=10, rank=8), inputs)
    assert all(after < before for before, after in zip([1.0, *errors], errors, strict=False))
    assert errors[0] < 0.5 and errors[-1] < 0.01


@pytest.mark.parametrize("seed", range(3))
def test_the_scaled_weights_lose_error_with_every_block(seed):
    weight, inputs = unit(64, 72, seed)
    stack = stack_of(weight, inputs, blocks=12, rank=2)
    lost = [
        ((weight - stack.cut(n).dequantized()) * stack.scale).square().sum() for n in range(1, 13)
    ]
    assert all(after < before for before, after in zip(lost, lost[1:], strict=False))


def test_weights_that_one_block_can_hold_are_held_exactly():
    """Any signs over magnitudes of rank one, all of them numbers that bf16 has."""
    generator = torch.Generator().manual_seed(0)
    signs = torch.randint(0, 2, (24, 40), generator=generator) * 2.0 - 1
    up, down = torch.tensor([4.0, 16.0]).repeat(12), torch.tensor([0.25, 1.0]).repeat(20)
    weight = signs * torch.outer(up, down)
    stack = stack_of(weight, None, blocks=1, rank=1)
    assert output_error(weight, stack.dequantized(), torch.eye(40)) < 2e-5


def test_errors_are_those_of_the_cut_stacks():
    weight, inputs = unit(48, 64, 0)
    stack = stack_of(weight, inputs, blocks=4, rank=4)
    for n, error in enumerate(block_errors(weight, stack, inputs), start=1):
        cut = stack.cut(n).dequantized()
        assert error == pytest.approx(output_error(weight, cut, inputs.hessian), rel=1e-5)
        plain = block_errors(weight, stack, None)[n - 1]
        assert plain == pytest.approx(float((weight - cut).square().sum() / weight.square().sum()))


@pytest.mark.parametrize("seed", range(5))
def test_scaling_by_loud_channels_lowers_the_output_error(seed):
    weight, inputs = unit(80, 64, seed)
    with_scale = block_errors(weight, stack_of(weight, inputs, blocks=3, rank=8), inputs)
    without = block_errors(weight, stack_of(weight, None, blocks=3, rank=8), inputs)
    assert all(a < b for a, b in zip(with_scale, without, strict=True))


def test_channels_that_never_came_in_do_no_harm():
    weight, _ = unit(40, 32, 0)
    rows = correlated_rows(200, 32, 0)
    rows[:, 5] = 0
    inputs = inputs_of(rows)
    stack = stack_of(weight, inputs, blocks=6, rank=4)
    assert torch.isfinite(stack.dequantized()).all() and stack.scale.min() > 0
    nothing = stack_of(weight, inputs_of(torch.zeros(8, 32)), blocks=6, rank=4)
    assert torch.equal(
        nothing.dequantized(), stack_of(weight, None, blocks=6, rank=4).dequantized()
    )


def test_the_same_weights_give_the_same_stack():
    weight, inputs = unit(40, 64, 0)
    first = stack_of(weight, inputs, blocks=3)
    torch.randn(5)
    again = stack_of(weight, inputs, blocks=3)
    assert all(
        torch.equal(first.tensors()[name], again.tensors()[name]) for name in again.tensors()
    )


def test_the_order_holds_all_blocks_once_and_each_units_in_turn(model):
    stacks, errors = model
    order = order_blocks(stacks, errors)
    assert order[:4] == [(name, 0) for name in SHAPES]
    for name in SHAPES:
        assert [i for unit, i in order if unit == name] == list(range(8))


def test_blocks_go_by_error_fall_per_byte(model):
    stacks, errors = model
    falls = [
        (errors[name][i - 1] - errors[name][i]) / stacks[name].block_nbytes
        for name, i in order_blocks(stacks, errors)
        if i
    ]
    # these errors fall less from block to block, so nothing is merged
    assert falls == sorted(falls, reverse=True)


def test_a_weak_block_is_judged_with_the_strong_one_behind_it():
    def stack():
        parts = torch.zeros(4, 2, 1).byte(), torch.zeros(4, 2, 1), torch.zeros(4, 1, 8)
        return Stack((2, 8), parts[0], parts[1].bfloat16(), parts[2].bfloat16(), torch.ones(8))

    errors = {"weak": [0.9, 0.9, 0.1, 0.0], "even": [0.9, 0.6, 0.3, 0.0]}
    order = order_blocks({"weak": stack(), "even": stack()}, errors)
    later = [block for block in order if block[1]]
    # blocks 1 and 2 of the weak lower the error by 0.4 each, those of the even by 0.3
    assert later[:2] == [("weak", 1), ("weak", 2)]
    assert later[2:] == [("even", 1), ("even", 2), ("even", 3), ("weak", 3)]


@pytest.mark.parametrize("bad", [[0.5] * 7, [0.5] * 7 + [float("nan")], []])
def test_errors_that_do_not_belong_to_the_blocks_are_refused(model, bad):
    stacks, errors = model
    with pytest.raises(ValueError, match="o: 8 blocks need as many finite errors"):
        order_blocks(stacks, errors | {"o": bad})


def sizes(stacks, kept):
    return sum(stacks[name].cut(n).nbytes for name, n in kept.items())


def limits(stacks):
    least = sum(stack.cut(1).nbytes for stack in stacks.values())
    return least, sum(stack.nbytes for stack in stacks.values())


def test_any_budget_is_met_within_one_block_and_more_memory_never_takes_one_away(model):
    stacks, errors = model
    order = order_blocks(stacks, errors)
    least, most = limits(stacks)
    largest = max(stack.block_nbytes for stack in stacks.values())
    before, total = dict.fromkeys(stacks, 1), 5.0
    for budget in [*range(least, most, 97), most]:
        kept = cut_to(stacks, order, budget)
        assert budget - largest < sizes(stacks, kept) <= budget
        assert all(kept[name] >= before[name] for name in stacks)
        now = sum(errors[name][n - 1] for name, n in kept.items())
        assert now <= total
        before, total = kept, now
    assert cut_to(stacks, order, least) == dict.fromkeys(stacks, 1)
    assert kept == dict.fromkeys(stacks, 8)


def test_the_order_beats_equal_numbers_of_blocks(model):
    stacks, errors = model
    budget = sizes(stacks, dict.fromkeys(stacks, 3))
    kept = cut_to(stacks, order_blocks(stacks, errors), budget)
    chosen = sum(errors[name][n - 1] for name, n in kept.items())
    assert chosen < sum(errors[name][2] for name in stacks)


@pytest.mark.parametrize("beyond", ["below", "above"])
def test_a_budget_out_of_reach_names_both_ends(model, beyond):
    stacks, errors = model
    least, most = limits(stacks)
    budget = least - 1 if beyond == "below" else most + 1
    with pytest.raises(ValueError, match=f"{least / 1e6:.6g} MB .* to {most / 1e6:.6g} MB") as told:
        cut_to(stacks, order_blocks(stacks, errors), budget)
    assert "\n" not in str(told.value)


def test_stacks_that_make_no_sense_are_refused():
    weight, inputs = unit(40, 32, 0)
    for options, told in (
        ({"blocks": 0}, "at least 1 block, not 0"),
        ({"rank": 0}, "rank of 1 to 32, not 0"),
        ({"rank": 33}, "rank of 1 to 32, not 33"),
    ):
        with pytest.raises(ValueError, match=told):
            stack_of(weight, inputs, **options)
    with pytest.raises(ValueError, match="NaN or infinite"):
        stack_of(weight, inputs_of(torch.full((4, 32), float("inf"))))
