"""e4m3 matmul: every code, hand-computed products, refused inputs, rows that do not meet."""

import pytest
import torch

from hspec_kernels.case import rms_ratio
from hspec_kernels.cases.fp8_matmul import make
from hspec_kernels.fp8_matmul import (
    CONFIGS,
    E4M3,
    choose,
    constants,
    fp8_matmul,
    fp8_matmul_ref,
    knows_e4m3,
)
from hspec_kernels.w4a16_matmul import Config

BOTH = pytest.mark.parametrize("multiply", [fp8_matmul, fp8_matmul_ref])
ROWS = pytest.mark.parametrize("narrow", [True, False], ids=["e4m3", "half"])
# all but the two NaN
CODES = [*range(0x7F), *range(0x80, 0xFF)]


@pytest.fixture
def old_device(monkeypatch):
    """A device before compute capability 8.9, whose weights are widened by hand."""
    monkeypatch.setattr("hspec_kernels.fp8_matmul.knows_e4m3", lambda device: False)


@pytest.fixture
def need_e4m3(device):
    if not knows_e4m3(torch.device(device)):
        pytest.skip("e4m3 rows need compute capability 8.9")


def codes(device):
    return torch.tensor(CODES, dtype=torch.uint8, device=device).view(E4M3)[:, None]  # [254, 1]


def fp32(values, device):
    return torch.tensor(values, dtype=torch.float32, device=device)


@BOTH
def test_16_bit_rows_are_scaled_by_weight(multiply, device):
    x = torch.tensor([[1.0, -2.0, 0.5], [16.0, 0.0, 1.0]]).half().to(device)
    weight = torch.tensor([[1.0, 1.5, 2.0], [448.0, 0.0, -(2.0**-9)]]).to(device, E4M3)
    y = multiply(x, None, weight, fp32([2.0, 0.25], device))
    # sums: -1, 448 - 2**-10 and 18, 7168 - 2**-9; fp16 keeps neither small part
    assert y.tolist() == [[-2.0, 112.0], [36.0, 1792.0]]


@BOTH
def test_e4m3_rows_bring_a_scale_of_their_own(multiply, device, need_e4m3):
    x = torch.tensor([[1.0, -2.0], [0.5, 3.0]]).to(device, E4M3)
    weight = torch.tensor([[1.0, 1.0], [4.0, 0.5]]).to(device, E4M3)
    x_scale, w_scale = fp32([2.0, -1.0], device), fp32([1.0, 8.0], device)
    y = multiply(x, x_scale, weight, w_scale, torch.float16)
    assert y.tolist() == [[-2.0, 48.0], [-3.5, -28.0]]


@BOTH
@ROWS
def test_every_code_is_its_number(multiply, narrow, device, request):
    if narrow:
        request.getfixturevalue("need_e4m3")
    one = torch.ones(1, 1).to(device, E4M3 if narrow else torch.float16)
    x_scale = fp32([1.0], device) if narrow else None
    y = multiply(one, x_scale, codes(device), torch.ones(254, device=device), torch.float16)
    assert torch.equal(y[0].float(), codes(device).float()[:, 0])


def test_every_code_is_its_number_on_an_old_device(device, old_device):
    one = torch.ones(1, 1).half().to(device)
    y = fp8_matmul(one, None, codes(device), torch.ones(254, device=device))
    assert torch.equal(y[0].float(), codes(device).float()[:, 0])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_moved_bits_are_the_number_with_another_bias(dtype):
    """What the kernel does on old devices, in torch, for bf16 too (not run by the interpreter)."""
    kind = constants(dtype, 1)
    code = torch.tensor(CODES, dtype=torch.uint8)
    bits = code.view(torch.int8).to(torch.int16) << kind["SHIFT"]
    moved = (bits & ((0x7F << kind["SHIFT"]) - 0x8000)).view(dtype)
    assert torch.equal(moved.double() * 2.0 ** kind["BIAS"], code.view(E4M3).double())


def test_an_old_device_computes_the_same_product(device, old_device, generator):
    for C in (384, 131):
        case = make(5, 70, C, narrow=False)(generator, device, torch.float16)
        assert rms_ratio(fp8_matmul(**case), fp8_matmul_ref(**case)) < 2e-4


def test_row_invariant_tiles_do_not_follow_the_number_of_rows():
    for R, C in ((4096, 4096), (28672, 8192), (1024, 28672)):
        assert len({choose(T, R, C, row_invariant=True) for T in range(1, 129)}) == 1
        assert len({choose(T, R, C) for T in range(1, 129)}) > 1
        assert {choose(T, R, C) for T in (1, 16, 24, 64, 500)} <= set(CONFIGS)


@pytest.mark.parametrize("block_t,splits", [(16, 4), (32, 2), (64, 8)])
def test_every_tile_shape_computes_the_same_product(block_t, splits, device, generator):
    config = next(c for c in CONFIGS if (c.block_t, c.splits) == (block_t, splits))
    case = make(19, 130, 640, narrow=False)(generator, device, torch.float16)
    assert rms_ratio(fp8_matmul(**case, config=config), fp8_matmul_ref(**case)) < 2e-4


@ROWS
@pytest.mark.parametrize("splits", [1, 2])
def test_nothing_outside_the_tensors_is_read_or_written(narrow, splits, device, generator, request):
    if narrow:
        request.getfixturevalue("need_e4m3")
    case = make(3, 70, 200, narrow)(generator, device, torch.float16)
    case["config"] = Config(64, 16, splits, 4, 3)
    wanted = fp8_matmul(**case)

    def inside(tensor, n_guard=2):
        """The same values in the middle of a buffer that is NaN everywhere else."""
        shape = (len(tensor) + 2 * n_guard, *tensor.shape[1:])
        buffer = torch.full(shape, torch.nan, device=device).to(tensor.dtype)
        buffer[n_guard:-n_guard] = tensor
        return buffer, buffer[n_guard:-n_guard]

    names = [k for k in ("x", "x_scale", "weight", "w_scale") if case[k] is not None]
    guarded = {k: inside(case[k])[1] for k in names}
    buffer, out = inside(torch.zeros_like(wanted))
    fp8_matmul(**case | guarded, out=out)
    assert torch.equal(out, wanted)
    assert bool(buffer[:2].isnan().all()) and bool(buffer[-2:].isnan().all())


def test_a_long_prompt_goes_through_in_parts(device, generator, monkeypatch, need_e4m3):
    monkeypatch.setattr("hspec_kernels.fp8_matmul._MAX_ROWS", 16)
    case = make(33, 64, 128, narrow=True)(generator, device, torch.float16)
    assert rms_ratio(fp8_matmul(**case), fp8_matmul_ref(**case)) < 2e-3


def test_an_old_device_refuses_e4m3_rows(device, old_device, generator):
    case = make(2, 5, 8, narrow=True)(generator, device, torch.float16)
    with pytest.raises(ValueError, match="e4m3fn rows need compute capability 8.9"):
        fp8_matmul(**case)


@pytest.mark.parametrize(
    "change,message",
    [
        ({"x": torch.zeros(3, 8)}, "x must be float8_e4m3fn or float16 or bfloat16, got float32"),
        ({"x": torch.zeros(8, 3).half().T}, "x must be contiguous"),
        ({"x": torch.zeros(0, 8).half()}, r"T must be 1\.\.16777216, got 0"),
        ({"x": torch.zeros(3, 0).half()}, r"C must be 1\.\.\d+, got 0"),
        ({"x": torch.zeros(3, 8).to(E4M3)}, "x_scale goes with float8_e4m3fn rows and no others"),
        ({"x_scale": torch.zeros(3)}, "x_scale goes with .* no others, x is torch.float16"),
        ({"weight": torch.zeros(5, 8).byte()}, "weight must be float8_e4m3fn, got uint8"),
        ({"weight": torch.zeros(5, 7).to(E4M3)}, r"weight must be \[any, 8\], got \[5, 7\]"),
        ({"weight": torch.zeros(0, 8).to(E4M3)}, r"R must be 1\.\.\d+, got 0"),
        ({"w_scale": torch.zeros(4)}, r"w_scale must be \[5\], got \[4\]"),
        ({"dtype": torch.float32}, "dtype must be float16 or bfloat16, got torch.float32"),
        ({"out": torch.zeros(5, 3).half()}, r"out must be \[3, 5\], got \[5, 3\]"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_does_not_fit_is_refused(change, message, device, generator):
    case = make(3, 5, 8, narrow=False)(generator, device, torch.float16)
    change = {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in change.items()}
    with pytest.raises(ValueError, match=message):
        fp8_matmul(**case | change)


def test_e4m3_rows_need_a_dtype_and_fitting_scales(device, generator, need_e4m3):
    case = make(3, 5, 8, narrow=True)(generator, device, torch.float16)
    with pytest.raises(ValueError, match="dtype must be float16 or bfloat16, got .*e4m3fn"):
        fp8_matmul(**case | {"dtype": None})
    with pytest.raises(ValueError, match=r"x_scale must be \[3\], got \[2\]"):
        fp8_matmul(**case | {"x_scale": torch.ones(2, device=device)})
