"""Keys and values in few bits: what is stored, what it stands for, what it loses."""

import pytest
import torch

from hspec_lab.quant.kv_bits import KVRounding, check_device_kv, hadamard, rounding_of
from hspec_lab.scheme import parse

BITS = pytest.mark.parametrize("bits", [8, 4, 2])


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def error(rounding: KVRounding, rows: torch.Tensor) -> float:
    return float((rounding.round(rows) - rows).square().mean().sqrt())


@pytest.mark.parametrize("D, n", [(1, 1), (2, 2), (16, 16), (64, 64), (80, 16), (96, 32), (6, 2)])
def test_the_rotation_is_hadamards_in_blocks_and_its_own_inverse(D, n):
    signs = [[1.0 - 2 * ((i & j).bit_count() % 2) for j in range(n)] for i in range(n)]
    H = torch.block_diag(*[torch.tensor(signs) * n**-0.5] * (D // n))
    torch.testing.assert_close(hadamard(torch.eye(D)), H)
    torch.testing.assert_close(hadamard(hadamard(randn(3, D))), randn(3, D))


def test_groups_by_hand():
    rows = torch.tensor([[[0.0, 1, 2, 3], [-4, 0, 8, 4]]])
    codes, scale, zero = KVRounding(2, 4, rotate=False).pack(rows)
    assert scale.tolist() == [[1, 4]] and zero.tolist() == [[2, 4]]
    assert codes.tolist() == [[[0b11_10_01_00], [0b10_11_01_00]]]
    codes, scale, zero = KVRounding(4, 4, rotate=False).pack(5 * rows[:, :1])
    assert (scale.tolist(), zero.tolist()) == ([[1]], [[8]]) and codes.tolist() == [[[0x50, 0xFA]]]
    codes, scale, zero = KVRounding(8, 4, rotate=False).pack(torch.tensor([[[1, -127, 63.4, 0]]]))
    assert codes.tolist() == [[[1, -127, 63, 0]]] and scale.tolist() == [[1]] and zero is None


@BITS
@pytest.mark.parametrize("rotate", [True, False])
def test_what_is_packed_stands_for_what_is_rounded(bits, rotate):
    for T, heads, D in [(1, 2, 8), (3, 4, 64), (17, 2, 96), (2, 2, 6), (1, 2, 1), (5, 6, 80)]:
        rounding = KVRounding(bits, D, rotate=rotate)
        rows = randn(T, heads, D, seed=T) * 10.0 ** randn(T, heads, 1, seed=D)
        rows[0, 0] = 0
        rows[-1, 1] = 3.25
        stored = rounding.pack(rows)
        assert torch.equal(rounding.unpack(*stored), rounding.round(rows))
        n_bytes = sum(tensor.nbytes for tensor in stored if tensor is not None)
        assert n_bytes == T * rounding.bytes_per_token(layers=1, kv_heads=heads // 2)
        assert rounding.effective_bits == 8 * n_bytes / rows.numel()


@BITS
def test_a_row_is_rounded_alike_alone_and_beside_a_loud_one(bits):
    rounding, rows = KVRounding(bits, 64), randn(9, 4, 64)
    rows[4] *= 1000
    together = rounding.round(rows)
    for t in range(9):
        assert torch.equal(together[t : t + 1], rounding.round(rows[t : t + 1]))


@pytest.mark.parametrize("rotate", [True, False])
def test_the_error_falls_with_bits_and_is_within_half_a_step(rotate):
    rows = randn(50, 4, 64)
    errors = [error(KVRounding(bits, 64, rotate=rotate), rows) for bits in (2, 4, 8)]
    assert errors[0] > 4 * errors[1] > 16 * errors[2] > 0
    turned = hadamard(rows) if rotate else rows
    for bits, spared in [(2, 0), (4, 0), (8, 1)]:
        rounding = KVRounding(bits, 64, rotate=rotate)
        found = rounding.round(rows)
        found = hadamard(found) if rotate else found
        span = turned.amax(-1) - turned.amin(-1) if bits < 8 else 2 * turned.abs().amax(-1)
        half_step = span / (2**bits - 1 - spared) / 2
        # bf16 moves the zero by a part of 256, and the scale likewise: less than a tenth more here
        assert ((found - turned).abs() <= 1.1 * half_step[..., None]).all()


@pytest.mark.parametrize("bits", [4, 2])
def test_rotation_helps_keys_with_outlier_channels(bits):
    keys = randn(200, 2, 64)
    keys[..., [3, 40]] *= 20 * randn(64)[[3, 40]].sign()
    rotated, plain = (error(KVRounding(bits, 64, rotate=turn), keys) for turn in (True, False))
    assert rotated < 0.7 * plain


@BITS
def test_sinks_are_kept_bit_for_bit_and_nothing_else_is(bits):
    rounding, rows = KVRounding(bits, 16, sinks=3), randn(6, 2, 16)
    positions = torch.tensor([5, 2, 1, 3, 2, 0])  # of a tree: in any order, repeated
    found = rounding.round(rows, positions)
    kept = (found == rows).flatten(1).all(1)
    assert kept.tolist() == [False, True, True, False, True, True]
    assert torch.equal(found[~kept], rounding.round(rows)[~kept])


def test_no_number_is_hidden():
    rows = randn(2, 2, 16)
    rows[0, 0, 3] = torch.nan
    for bits in (8, 4, 2):
        found = KVRounding(bits, 16).round(rows)
        assert found[0, 0].isnan().any() and found[1].isfinite().all()


@pytest.mark.parametrize("bits, tolerance", [(8, 0.01), (4, 0.15)])
def test_attention_over_what_codes_stand_for_is_near_attention_over_the_numbers(bits, tolerance):
    q, rows = randn(2, 5, 64, seed=1), randn(200, 4, 64)
    outputs = []
    for stored in (rows, KVRounding(bits, 64).round(rows)):
        k, v = stored.transpose(0, 1).split(2)
        outputs.append(torch.nn.functional.scaled_dot_product_attention(q, k, v))
    assert (outputs[1] - outputs[0]).norm() < tolerance * outputs[0].norm()


def test_a_scheme_says_how_its_cache_rounds():
    assert rounding_of(parse("w4a16-g128"), 64) is rounding_of(parse("fp32"), 64) is None
    assert rounding_of(parse("w4a16-g128-kv4"), 64) == KVRounding(4, 64, sinks=4, rotate=True)
    assert rounding_of(parse("w8a8-kv2"), 32) == KVRounding(2, 32)
    # as the kernels do it
    assert rounding_of(parse("w8a8-kv8"), 32) == KVRounding(8, 32, sinks=0, rotate=False)


def test_what_there_is_none_of_is_refused():
    with pytest.raises(ValueError, match="rounded to 8, 4 or 2 bits, not 3"):
        KVRounding(3, 64)
    with pytest.raises(ValueError, match="head_dim must be at least 1 .* got 0 and 4"):
        KVRounding(4, 0)
    check_device_kv(16)
    check_device_kv(8)
    with pytest.raises(ValueError, match="kv4 has no kernel; keys and values on a device have 16"):
        check_device_kv(4)
