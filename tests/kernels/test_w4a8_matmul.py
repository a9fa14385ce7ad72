"""4-bit times int8: packing, hand-computed products, exact sums, refused inputs, separate rows."""

import pytest
import torch

from hspec_kernels.cases.w4a8_matmul import make
from hspec_kernels.w4a8_matmul import (
    CONFIGS,
    MAX_C,
    choose,
    pack_w4a8,
    unpack_w4a8,
    w4a8_matmul,
    w4a8_matmul_ref,
)
from hspec_kernels.w4a16_matmul import Config

BOTH = pytest.mark.parametrize("multiply", [w4a8_matmul, w4a8_matmul_ref])


def int8(values, device):
    return torch.tensor(values, dtype=torch.int8, device=device)


def uint8(values, device):
    return torch.tensor(values, dtype=torch.uint8, device=device)


def ones(n, device):
    return torch.ones(n, device=device)


def test_a_byte_holds_two_columns_half_a_block_apart():
    q = torch.zeros(1, 256, dtype=torch.uint8)
    q[0, [0, 64, 63, 128 + 127]] = torch.tensor([1, 2, 3, 4], dtype=torch.uint8)
    packed = pack_w4a8(q)
    assert packed.shape == (1, 128)
    assert packed[0, 0] == 0x21 and packed[0, 63] == 0x03 and packed[0, 127] == 0x40
    assert packed.count_nonzero() == 3


@pytest.mark.parametrize("C", [1, 65, 128, 300])
def test_packing_is_undone_by_unpacking(C, generator):
    q = torch.randint(0, 16, (3, C), generator=generator, dtype=torch.uint8)
    assert torch.equal(unpack_w4a8(pack_w4a8(q), C), q)


@BOTH
def test_both_levels_of_scales_apply(multiply, device):
    xq = int8([[1, 2, 3], [-128, 0, 127]], device)
    packed = pack_w4a8(uint8([[0, 8, 15], [9, 8, 8], [0, 1, 15]], device))
    iscale, zero = uint8([[16], [127], [8]], device), uint8([[8], [8], [0]], device)
    # weights: -128 0 112, 127 0 0, 0 8 120; sums: 208, 127, 376 and 30608, -16256, 15240
    x_scale = torch.tensor([1.0, 0.125], device=device)
    w_scale = torch.tensor([0.5, 1.0, -0.25], device=device)
    y = multiply(xq, x_scale, packed, iscale, zero, w_scale, 3, torch.float16)
    # 30608 / 16 = 1913 and 15240 / 32 = 476.25 are fp16 numbers
    assert y.tolist() == [[104.0, 127.0, -94.0], [1913.0, -2032.0, -476.25]]


@BOTH
@pytest.mark.parametrize("group_size", [128, 256, 384], ids=lambda g: f"g{g}")
def test_each_weight_meets_its_own_input(multiply, group_size, device, generator):
    """Unit rows read the weights back: random codes, groups of different scales and zeros."""
    case = make(1, 5, 768, group_size)(generator, device, torch.float16)
    q = unpack_w4a8(case["packed"], 768).int()
    zero, iscale = (case[k].int().repeat_interleave(group_size, 1) for k in ("zero", "iscale"))
    rows = {"xq": torch.eye(768, dtype=torch.int8, device=device), "x_scale": ones(768, device)}
    case |= rows | {"w_scale": ones(5, device)}
    # interpreted time goes by the number of programs
    if multiply is w4a8_matmul and device == "cpu":
        case["config"] = Config(16, 1024, 1, 4, 4)
    assert torch.equal(multiply(**case).T.int(), (q - zero) * iscale)


@BOTH
def test_all_zeros_up_to_127_are_subtracted_exactly(multiply, device):
    zero = torch.arange(128, dtype=torch.uint8, device=device)[:, None]
    packed = pack_w4a8(torch.full((128, 72), 5, dtype=torch.uint8, device=device))
    xq = torch.ones(1, 72, dtype=torch.int8, device=device)
    scales = ones(1, device), ones(128, device)
    y = multiply(xq, scales[0], packed, torch.ones_like(zero), zero, scales[1], 72, torch.float16)
    # multiples of 8 below 16384 are fp16 numbers
    assert y[0].tolist() == [72.0 * (5 - z) for z in range(128)]


@pytest.mark.parametrize("block_t", [16, 32, 64])
@pytest.mark.parametrize("splits", [1, 4])
def test_every_tile_shape_gives_the_same_bits(block_t, splits, device, generator):
    config = next(c for c in CONFIGS if (c.block_t, c.splits) == (block_t, splits))
    case = make(20, 66, 640, 128)(generator, device, torch.float16)
    assert torch.equal(w4a8_matmul(**case, config=config), w4a8_matmul_ref(**case))


def test_a_layer_is_split_until_the_device_is_busy():
    assert choose(1, 28672, 4096).splits == 1
    assert choose(1, 4096, 14336).splits == 4
    assert choose(4096, 4096, 14336).splits == 1  # tiles of x keep it busy
    assert [choose(T, 4096, 4096).block_t for T in (1, 16, 17, 64, 65)] == [16, 16, 32, 64, 64]


@pytest.mark.parametrize("splits", [1, 2])
def test_nothing_outside_the_tensors_is_read_or_written(splits, device, generator):
    case = make(3, 70, 384, 128)(generator, device, torch.float16)
    wanted = w4a8_matmul_ref(**case)

    def inside(tensor, n_guard=2):
        """The same values in the middle of a buffer that is NaN, or 127, everywhere else."""
        bad = torch.nan if tensor.is_floating_point() else 127
        shape = (len(tensor) + 2 * n_guard, *tensor.shape[1:])
        buffer = torch.full(shape, bad, dtype=tensor.dtype, device=device)
        buffer[n_guard:-n_guard] = tensor
        return buffer, buffer[n_guard:-n_guard]

    names = ("xq", "x_scale", "packed", "iscale", "zero", "w_scale")
    guarded = {k: inside(case[k])[1] for k in names}
    buffer, out = inside(torch.zeros_like(wanted))
    w4a8_matmul(**case | guarded, config=Config(64, 16, splits, 4, 4), out=out)
    assert torch.equal(out, wanted)
    assert bool(buffer[:2].isnan().all()) and bool(buffer[-2:].isnan().all())


@pytest.mark.parametrize(
    "change,message",
    [
        ({"xq": torch.zeros(3, 256)}, "xq must be int8, got float32"),
        ({"xq": torch.zeros(256, 3).char().T}, "xq must be contiguous"),
        ({"xq": torch.zeros(0, 256).char()}, r"T must be 1\.\.16777216, got 0"),
        ({"xq": torch.zeros(1, MAX_C + 1).char()}, r"C must be 1\.\.131071, got 131072"),
        ({"group_size": 64}, "group_size must be 256, or a multiple of 128 in it, got 64"),
        ({"group_size": 0}, "group_size must be 256, .* got 0"),
        ({"group_size": 384}, "group_size must be 256, .* got 384"),
        ({"packed": torch.zeros(5, 256).byte()}, r"packed must be \[any, 128\], got \[5, 256\]"),
        ({"packed": torch.zeros(0, 128).byte()}, r"R must be 1\.\.\d+, got 0"),
        ({"iscale": torch.zeros(5, 2)}, "iscale must be uint8, got float32"),
        ({"iscale": torch.zeros(5, 1).byte()}, r"iscale must be \[5, 2\], got \[5, 1\]"),
        ({"zero": torch.zeros(5, 3).byte()}, r"zero must be \[5, 2\], got \[5, 3\]"),
        ({"x_scale": torch.zeros(3, 1)}, r"x_scale must be \[3\], got \[3, 1\]"),
        ({"w_scale": torch.zeros(5).half()}, "w_scale must be float32, got float16"),
        ({"dtype": torch.int8}, "dtype must be float16 or bfloat16, got torch.int8"),
        ({"out": torch.zeros(5, 3).half()}, r"out must be \[3, 5\], got \[5, 3\]"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_does_not_fit_is_refused(change, message, device, generator):
    case = make(3, 5, 256, 128)(generator, device, torch.float16)
    change = {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in change.items()}
    with pytest.raises(ValueError, match=message):
        w4a8_matmul(**case | change)
