"""Rows to int8: hand-computed steps and ties, refused inputs, rows that do not meet."""

import pytest
import torch

from hspec_kernels.quantize_rows import CONFIGS, MAX_C, choose, quantize_rows, quantize_rows_ref

BOTH = pytest.mark.parametrize("quantize", [quantize_rows, quantize_rows_ref])


def rows(*values, device, dtype=torch.float16):
    return torch.tensor(values, dtype=dtype, device=device)


@BOTH
def test_the_largest_entry_becomes_127_steps(quantize, device):
    q, scale = quantize(rows([254.0, -127.0, 2.0, 0.0], [-0.5, 0.25, 0.0, 0.5], device=device))
    # 0.25 is 63.5 steps, a tie
    assert q.tolist() == [[127, -64, 1, 0], [-127, 64, 0, 127]]
    assert scale.tolist() == [2.0, pytest.approx(0.5 / 127, rel=2**-24)]


@BOTH
def test_ties_go_to_the_even_step(quantize, device):
    q, scale = quantize(rows([127.0, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 125.5], device=device))
    assert scale.tolist() == [1.0]
    assert q.tolist() == [[127, 0, 2, 2, 0, -2, -2, 126]]


@BOTH
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_a_row_of_zeros_keeps_scale_one(quantize, dtype, device):
    q, scale = quantize(rows([0.0, -0.0, 0.0], [0.0, 0.0, 2.0**-14], device=device, dtype=dtype))
    assert q.tolist() == [[0, 0, 0], [0, 0, 127]]
    assert scale.tolist() == [1.0, pytest.approx(2.0**-14 / 127, rel=2**-24)]


@BOTH
def test_numbers_too_small_for_a_step_count_as_zeros(quantize, device):
    tiny = rows([2.0**-100, -(2.0**-126)], [2.0**-99, 0.0], device=device, dtype=torch.bfloat16)
    q, scale = quantize(tiny)
    assert q.tolist() == [[0, 0], [127, 0]]
    assert scale[0] == 1.0 and scale[1] < 2.0**-105


@BOTH
def test_every_number_lies_half_a_step_from_its_step_at_most(quantize, device, generator):
    x = torch.randn(4, 1000, generator=generator).half().to(device)
    q, scale = quantize(x)
    distance = (q.double() * scale.double()[:, None] - x.double()).abs() / scale.double()[:, None]
    assert distance.max() <= 0.5 + 2**-16
    assert q.abs().amax(dim=1).tolist() == [127] * 4


def test_bfloat16_rows_equal_the_definition(device, generator):
    x = torch.randn(7, 333, generator=generator).bfloat16().to(device)
    for ours, wanted in zip(quantize_rows(x), quantize_rows_ref(x), strict=True):
        assert torch.equal(ours, wanted)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: str(config.block_c))
def test_the_block_is_the_smallest_that_holds_a_row(config):
    assert choose(config.block_c) == config
    assert choose(config.block_c // 2 + 1).block_c >= config.block_c // 2 + 1
    assert choose(config.block_c // 2).block_c <= max(512, config.block_c // 2)


def test_nothing_outside_the_tensors_is_read_or_written(device, generator):
    buffer = torch.full((7, 100), torch.nan, dtype=torch.float16, device=device)
    buffer[2:5] = torch.randn(3, 100, generator=generator).half().to(device)
    q = torch.full((7, 100), 99, dtype=torch.int8, device=device)
    scale = torch.full((7,), 99.0, device=device)
    found = quantize_rows(buffer[2:5], out=(q[2:5], scale[2:5]))
    wanted = quantize_rows_ref(buffer[2:5])
    for ours, ref in zip(found, wanted, strict=True):
        assert torch.equal(ours, ref)
    for whole in (q, scale):
        assert bool((whole[:2] == 99).all()) and bool((whole[5:] == 99).all())


@pytest.mark.parametrize(
    "x,message",
    [
        (torch.zeros(2, 8), "x must be float16 or bfloat16, got float32"),
        (torch.zeros(8).half(), r"x must be \[any, any\], got \[8\]"),
        (torch.zeros(8, 2).half().T, "x must be contiguous"),
        (torch.zeros(0, 8).half(), r"T must be 1\.\.\d+, got 0"),
        (torch.zeros(2, 0).half(), r"C must be 1\.\.32768, got 0"),
        (torch.zeros(1, MAX_C + 1).half(), r"C must be 1\.\.32768, got 32769"),
    ],
    ids=["dtype", "dims", "strides", "no-rows", "no-columns", "too-wide"],
)
def test_what_does_not_fit_is_refused(x, message, device):
    with pytest.raises(ValueError, match=message):
        quantize_rows(x.to(device))


@pytest.mark.parametrize(
    "q,scale,message",
    [
        (torch.zeros(2, 7).char(), torch.zeros(2), r"q must be \[2, 8\], got \[2, 7\]"),
        (torch.zeros(2, 8).byte(), torch.zeros(2), "q must be int8, got uint8"),
        (torch.zeros(2, 8).char(), torch.zeros(2, 1), r"scale must be \[2\], got \[2, 1\]"),
    ],
    ids=["shape", "dtype", "scale"],
)
def test_outputs_that_do_not_fit_are_refused(q, scale, message, device):
    with pytest.raises(ValueError, match=message):
        quantize_rows(torch.zeros(2, 8).half().to(device), out=(q.to(device), scale.to(device)))
