"""8-, 3- and 2-bit matmul: packing, hand-computed products, refused inputs, separate rows."""

import pytest
import torch

from hspec_kernels.case import rms_ratio
from hspec_kernels.cases.wna16_matmul import make
from hspec_kernels.w4a16_matmul import Config
from hspec_kernels.wna16_matmul import (
    CONFIGS,
    MAGIC,
    choose,
    pack_wna16,
    unpack_wna16,
    wna16_matmul,
    wna16_matmul_ref,
)

BOTH = pytest.mark.parametrize("multiply", [wna16_matmul, wna16_matmul_ref])
BITS = pytest.mark.parametrize("bits", [8, 3, 2])
# one launch, tiles that hold everything: interpreted time goes by the number of programs
ONE = Config(64, 16, 1, 4, 3)


def test_two_bits_lie_in_block_quarters():
    q = torch.zeros(1, 128, dtype=torch.uint8)
    q[0, [0, 32, 64, 96, 31, 127]] = torch.tensor([1, 2, 3, 1, 2, 3], dtype=torch.uint8)
    packed = pack_wna16(q, 2)
    assert packed.shape == (1, 32)
    assert packed[0, 0] == 0b01_11_10_01 and packed[0, 31] == 0b11_00_00_10
    assert packed[0, 1:31].sum() == 0


def test_three_bits_lie_in_quarters_and_eighths():
    q = torch.zeros(1, 256, dtype=torch.uint8)
    q[0, [5, 133, 229]] = torch.tensor([0b101, 0b110, 0b111], dtype=torch.uint8)
    packed = pack_wna16(q, 3)
    assert packed.shape == (1, 96)
    # column 133 is the first quarter of the second block, 229 its last
    assert packed[0, 5] == 0b01 and packed[0, 32 + 5] == 0b11_00_00_10
    # eighths 0, 4 and 7 lie at bits 2, 3 and 1
    assert packed[0, 64 + 5] == 0b1110
    assert packed.count_nonzero() == 3


@BITS
@pytest.mark.parametrize("C", [1, 128, 300, 512])
def test_packing_is_undone_by_unpacking(bits, C, generator):
    q = torch.randint(0, 2**bits, (3, C), generator=generator, dtype=torch.uint8)
    packed = pack_wna16(q, bits)
    assert packed.dtype == torch.uint8
    assert torch.equal(unpack_wna16(packed, bits, C), q)


def test_what_fills_up_a_block_is_zero():
    for bits, middle in ((8, 128), (3, 4), (2, 2)):
        packed = pack_wna16(torch.zeros(1, 1, dtype=torch.uint8), bits)
        assert unpack_wna16(packed, bits, 100)[0, 1:].unique().tolist() == [middle]


@BOTH
@BITS
def test_each_weight_meets_its_own_input(multiply, bits, device, generator):
    """Unit rows read the weights back: random codes, two groups."""
    q = torch.randint(0, 2**bits, (3, 256), generator=generator, dtype=torch.uint8)
    scale = torch.tensor([[0.5, 2.0], [1.0, 0.25], [4.0, 1.0]])
    zero = torch.tensor([[0.0, 1.0], [-4.0, 8.0], [0.5, 0.0]])
    wanted = (q.float() - 2 ** (bits - 1)) * scale.repeat_interleave(128, 1)
    wanted += zero.repeat_interleave(128, 1)
    half = [t.half().to(device) for t in (torch.eye(256), scale, zero)]
    options = {"config": Config(64, 256, 1, 4, 2)} if device == "cpu" else {}
    options = options if multiply is wna16_matmul else {}
    y = multiply(half[0], pack_wna16(q, bits).to(device), *half[1:], bits, 128, **options)
    assert torch.equal(y.cpu().float(), wanted.T)


@BOTH
def test_a_group_may_be_the_whole_row(multiply, device):
    x = torch.tensor([[1.0, 2.0, 4.0]]).half().to(device)
    packed = pack_wna16(torch.tensor([[3, 0, 1], [2, 2, 2]], dtype=torch.uint8), 2).to(device)
    scale = torch.tensor([[0.5], [1.0]]).half().to(device)
    zero = torch.tensor([[1.0], [-1.0]]).half().to(device)
    assert multiply(x, packed, scale, None, 2, 3).tolist() == [[0.5 - 2 - 2, 0.0]]
    assert multiply(x, packed, scale, zero, 2, 3).tolist() == [[3.5 - 1 + 1 - 0, -7.0]]


def test_numbers_of_every_code_fit_their_mantissa():
    """What the kernel does to codes, in torch, for bf16 too, which the interpreter cannot run."""
    for dtype, (magic, mantissa) in MAGIC.items():
        for bits in (2, 3):
            for part in range(8):
                at = 2 * (part % 4) - max(2 * (part % 4) + bits - mantissa, 0)
                code = torch.arange(2**bits, dtype=torch.int16) << at
                assert at >= 0 and int(code.max()) < 2**mantissa
                number = (code | magic).view(dtype) * 2.0**-at
                middle = 2.0 ** (mantissa - at) + 2 ** (bits - 1)
                assert torch.tensor(middle, dtype=dtype).item() == middle
                assert (number - middle).tolist() == [q - 2 ** (bits - 1) for q in range(2**bits)]


@BITS
@pytest.mark.parametrize("zeros", [True, False], ids=["zero", "symmetric"])
def test_fp16_stays_within_two_roundings_of_a_weight(bits, zeros, device, generator):
    case = make(16, 64, 768, bits, 128, zeros)(generator, device, torch.float16)
    assert rms_ratio(wna16_matmul(**case, config=ONE), wna16_matmul_ref(**case)) < 6e-4


def test_row_invariant_tiles_do_not_follow_the_number_of_rows():
    for R, C in ((4096, 4096), (28672, 8192), (1024, 28672)):
        for bits in (8, 3, 2):
            assert len({choose(T, R, C, bits, row_invariant=True) for T in range(1, 129)}) == 1
            assert len({choose(T, R, C, bits) for T in range(1, 129)}) > 1


def test_every_choice_is_a_listed_configuration():
    for R, C in ((1, 1), (4096, 4096), (4096, 14336), (28672, 4096), (128256, 8192)):
        for bits in (8, 3, 2):
            assert {choose(T, R, C, bits) for T in (1, 16, 24, 64, 500)} <= set(CONFIGS)


@pytest.mark.parametrize("block_r,block_t,splits", [(128, 64, 8), (128, 32, 2), (64, 16, 4)])
def test_every_tile_shape_computes_the_same_product(block_r, block_t, splits, device, generator):
    case = make(19, 130, 640, 2, 64)(generator, device, torch.float16)
    y = wna16_matmul(**case, config=Config(block_r, block_t, splits, 4, 3))
    assert rms_ratio(y, wna16_matmul_ref(**case)) < 6e-4


@BITS
@pytest.mark.parametrize("splits", [1, 2])
def test_nothing_outside_the_tensors_is_read_or_written(bits, splits, device, generator):
    config = Config(64, 16, splits, 4, 3)
    case = make(3, 70, 320, bits, 64)(generator, device, torch.float16) | {"config": config}
    wanted = wna16_matmul(**case)

    def inside(tensor, n_guard=2):
        """The same values in the middle of a buffer that is NaN, or 255, everywhere else."""
        bad = torch.nan if tensor.is_floating_point() else 255
        shape = (len(tensor) + 2 * n_guard, *tensor.shape[1:])
        buffer = torch.full(shape, bad, dtype=tensor.dtype, device=device)
        buffer[n_guard:-n_guard] = tensor
        return buffer, buffer[n_guard:-n_guard]

    guarded = {k: inside(case[k])[1] for k in ("x", "packed", "scale", "zero")}
    buffer, out = inside(torch.zeros_like(wanted))
    wna16_matmul(**case | guarded, out=out)
    assert torch.equal(out, wanted)
    assert bool(buffer[:2].isnan().all()) and bool(buffer[-2:].isnan().all())


def test_a_long_prompt_goes_through_in_parts(device, generator, monkeypatch):
    monkeypatch.setattr("hspec_kernels.wna16_matmul._MAX_ROWS", 16)
    case = make(33, 64, 128, 2, 128)(generator, device, torch.float16)
    assert rms_ratio(wna16_matmul(**case), wna16_matmul_ref(**case)) < 6e-4


@pytest.mark.parametrize(
    "change,message",
    [
        ({"x": torch.zeros(2, 256)}, "x must be float16 or bfloat16, got float32"),
        ({"x": torch.zeros(256, 2).half().T}, "x must be contiguous"),
        ({"x": torch.zeros(0, 256).half()}, r"T must be 1\.\.\d+, got 0"),
        ({"x": torch.zeros(2, 0).half()}, r"C must be 1\.\.\d+, got 0"),
        ({"bits": 4}, r"bits must be one of \(2, 3, 8\), got 4"),
        ({"group_size": 48}, "group_size must be 256 or of .* and divide it, got 48"),
        ({"x": torch.zeros(2, 100).half()}, "group_size must be 100 or of .* got 128"),
        ({"packed": torch.zeros(70, 64).byte()}, r"packed must be \[any, 96\], got \[70, 64\]"),
        ({"packed": torch.zeros(70, 96)}, "packed must be uint8, got float32"),
        ({"packed": torch.zeros(0, 96).byte()}, r"R must be 1\.\.\d+, got 0"),
        ({"scale": torch.zeros(70, 2)}, "scale must be float16, got float32"),
        ({"zero": torch.zeros(70, 1).half()}, r"zero must be \[70, 2\], got \[70, 1\]"),
        ({"out": torch.zeros(3, 71).half()}, r"out must be \[3, 70\]"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_does_not_fit_is_refused(change, message, device, generator):
    case = make(3, 70, 256, 3, 128)(generator, device, torch.float16)
    change = {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in change.items()}
    with pytest.raises(ValueError, match=message):
        wna16_matmul(**case | change)
