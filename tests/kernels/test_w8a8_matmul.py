"""int8 matmul: hand-computed products, exact sums, refused inputs, rows that do not meet."""

import pytest
import torch

from hspec_kernels.cases.w8a8_matmul import make
from hspec_kernels.w8a8_matmul import CONFIGS, MAX_C, Config, choose, w8a8_matmul, w8a8_matmul_ref

BOTH = pytest.mark.parametrize("multiply", [w8a8_matmul, w8a8_matmul_ref])


def int8(values, device):
    return torch.tensor(values, dtype=torch.int8, device=device)


def fp32(values, device):
    return torch.tensor(values, dtype=torch.float32, device=device)


@BOTH
def test_sums_are_scaled_by_their_row_and_their_weight(multiply, device):
    xq = int8([[1, 2, 3], [127, 0, -128]], device)
    weight = int8([[1, 0, 0], [0, -1, 0], [127, 127, -128], [1, 1, 1]], device)
    x_scale, w_scale = fp32([2.0, 0.5], device), fp32([1.0, 0.25, 0.125, -1.0], device)
    y = multiply(xq, x_scale, weight, w_scale, torch.float16)
    # sums: 1, -2, -3, 6 and 127, 0, 127**2 + 128**2 = 32513, -1; 32513 / 16 = 2032.06 in fp16: 2032
    assert y.tolist() == [[2.0, -1.0, -0.75, -12.0], [63.5, 0.0, 2032.0, 0.5]]


@BOTH
def test_each_weight_meets_its_own_input(multiply, device):
    """Unit rows read the weights back."""
    weight = (torch.arange(5 * 200) % 251 - 125).view(5, 200).to(torch.int8).to(device)
    ones = fp32([1.0] * 200, device)
    unit = torch.eye(200, dtype=torch.int8, device=device)
    y = multiply(unit, ones, weight, ones[:5], torch.float16)
    assert torch.equal(y.to(torch.int8).T, weight)


@BOTH
def test_the_largest_sum_of_all_still_fits(multiply, device):
    lowest = torch.full((1, MAX_C), -128, dtype=torch.int8, device=device)
    scale = fp32([2.0**-20], device)
    # interpreted time goes by the number of steps
    wide = {} if device == "cuda" else {"config": Config(16, 16, 16384, 1, 4, 1)}
    wide = wide if multiply is w8a8_matmul else {}
    y = multiply(lowest, scale, lowest, fp32([1.0], device), torch.float16, **wide)
    assert y.item() == 2048.0  # 2**14 * (2**17 - 1) / 2**20, rounded


@pytest.mark.parametrize(
    "config", [c for c in CONFIGS if c.splits in (1, 8)], ids=lambda c: f"t{c.block_t}-s{c.splits}"
)
def test_every_tile_shape_gives_the_same_bits(config, device, generator):
    case = make(20, 66, 520)(generator, device, torch.float16)
    assert torch.equal(w8a8_matmul(**case, config=config), w8a8_matmul_ref(**case))


def test_a_layer_is_split_until_the_device_is_busy():
    assert choose(1, 28672, 4096).splits == 1
    assert choose(1, 4096, 14336).splits == 4
    assert choose(1, 1024, 65536).splits == 8
    assert choose(1, 64, 1000).splits == 1  # too short to split
    assert choose(4096, 4096, 14336).splits == 1  # tiles of x keep it busy
    assert [choose(T, 4096, 4096).block_t for T in (1, 16, 17, 64, 65, 500)] == [
        16, 16, 32, 64, 128, 128,
    ]  # fmt: skip


@pytest.mark.parametrize("splits", [1, 4])
def test_nothing_outside_the_tensors_is_read_or_written(splits, device, generator):
    case = make(3, 70, 600)(generator, device, torch.float16)
    wanted = w8a8_matmul_ref(**case)

    def inside(tensor, n_guard=2):
        """The same values in the middle of a buffer that is NaN, or 127, everywhere else."""
        bad = torch.nan if tensor.is_floating_point() else 127
        shape = (len(tensor) + 2 * n_guard, *tensor.shape[1:])
        buffer = torch.full(shape, bad, dtype=tensor.dtype, device=device)
        buffer[n_guard:-n_guard] = tensor
        return buffer, buffer[n_guard:-n_guard]

    guarded = {k: inside(case[k])[1] for k in ("xq", "x_scale", "weight", "w_scale")}
    buffer, out = inside(torch.zeros_like(wanted))
    w8a8_matmul(**case | guarded, config=Config(64, 16, 128, splits, 4, 4), out=out)
    assert torch.equal(out, wanted)
    assert bool(buffer[:2].isnan().all()) and bool(buffer[-2:].isnan().all())


@pytest.mark.parametrize(
    "change,message",
    [
        ({"xq": torch.zeros(3, 8)}, "xq must be int8, got float32"),
        ({"xq": torch.zeros(8, 3).char().T}, "xq must be contiguous"),
        ({"xq": torch.zeros(0, 8).char()}, r"T must be 1\.\.16777216, got 0"),
        ({"xq": torch.zeros(1, MAX_C + 1).char()}, r"C must be 1\.\.131071, got 131072"),
        ({"weight": torch.zeros(5, 7).char()}, r"weight must be \[any, 8\], got \[5, 7\]"),
        ({"weight": torch.zeros(0, 8).char()}, r"R must be 1\.\.\d+, got 0"),
        ({"x_scale": torch.zeros(3).half()}, "x_scale must be float32, got float16"),
        ({"x_scale": torch.zeros(3, 1)}, r"x_scale must be \[3\], got \[3, 1\]"),
        ({"w_scale": torch.zeros(4)}, r"w_scale must be \[5\], got \[4\]"),
        ({"dtype": torch.float32}, "dtype must be float16 or bfloat16, got torch.float32"),
        ({"out": torch.zeros(3, 5).bfloat16()}, "out must be float16, got bfloat16"),
        ({"out": torch.zeros(5, 3).half()}, r"out must be \[3, 5\], got \[5, 3\]"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_does_not_fit_is_refused(change, message, device, generator):
    case = make(3, 5, 8)(generator, device, torch.float16)
    change = {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in change.items()}
    with pytest.raises(ValueError, match=message):
        w8a8_matmul(**case | change)
