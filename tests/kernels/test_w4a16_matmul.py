"""4-bit matmul: packing, hand-computed products, refused inputs, rows that do not meet."""

import pytest
import torch

from hspec_kernels._splits import arrival_counters
from hspec_kernels.cases.w4a16_matmul import make
from hspec_kernels.w4a16_matmul import (
    CONFIGS,
    WIDEN_BF16,
    WIDEN_FP16,
    Config,
    choose,
    pack_w4a16,
    unpack_w4a16,
    w4a16_matmul,
    w4a16_matmul_ref,
)

BOTH = pytest.mark.parametrize("multiply", [w4a16_matmul, w4a16_matmul_ref])


@pytest.mark.parametrize("C", [32, 128, 160, 256])
def test_packing_is_undone_by_unpacking(C, generator):
    q = torch.randint(0, 16, (3, C), generator=generator, dtype=torch.uint8)
    packed = pack_w4a16(q)
    assert packed.shape == (3, 64 * -(-C // 128))
    assert torch.equal(unpack_w4a16(packed, C), q)
    if C >= 128:
        # word 0 of a block holds its first input and the ones 32, 64 and 96 further
        word = int(packed.view(torch.int16)[0, 0]) & 0xFFFF
        assert word == sum(int(q[0, 32 * p]) << 4 * p for p in range(4))


# what the two instructions of the assembly do to 32-bit registers
PTX = {
    "shr.b32": lambda a, n: a >> n,
    # 0xEA is the truth table of (a and b) or c
    "lop3.b32": lambda a, b, c, table: (a & b) | c if table == 0xEA else None,
}


@pytest.mark.parametrize("text, magic", [(WIDEN_FP16, 0x6400), (WIDEN_BF16, 0x4300)])
def test_the_assembly_takes_words_apart_as_the_interpreter_does(text, magic, generator):
    words = torch.randint(0, 2**16, (500, 2), generator=generator).tolist()
    for low, high in [*words, [0, 0xFFFF], [0xFFFF, 0], [0x8000, 1]]:
        register = {"$4": low | high << 16}
        for line in text.value.strip("{}").split(";"):
            operation, _, operands = line.strip().partition(" ")
            if operation in PTX:
                to, *sources = (name.strip() for name in operands.split(","))
                values = [register[x] if x in register else int(x, 0) for x in sources]
                register[to] = PTX[operation](*values)
        for plane in range(4):
            halves = [magic | (word >> 4 * plane & 0xF) for word in (low, high)]
            assert register[f"${plane}"] == halves[0] | halves[1] << 16


@BOTH
def test_each_weight_meets_its_own_input(multiply, device):
    """Unit rows read the weights back: all 16 values, both nibbles, two groups."""
    q = (torch.arange(2 * 64) % 16).view(2, 64).to(torch.uint8)
    scale = torch.tensor([[0.5, 2.0], [1.0, 0.25]])
    zero = torch.tensor([[0.0, 1.0], [-4.0, 8.0]])
    wanted = (q.float() - 8) * scale.repeat_interleave(32, 1) + zero.repeat_interleave(32, 1)
    half = [t.half().to(device) for t in (torch.eye(64), scale, zero)]
    y = multiply(half[0], pack_w4a16(q).to(device), half[1], half[2], 32)
    assert torch.equal(y.cpu().float(), wanted.T)


def inputs(T, R, C, G, device, generator, **options):
    made = make(T, R, C, G)(generator, device, torch.float16)
    return made | options


def test_row_invariant_tiles_do_not_follow_the_number_of_rows():
    for R, C in ((4096, 4096), (57344, 8192), (10240, 8192)):
        assert len({choose(T, R, C, row_invariant=True) for T in range(1, 129)}) == 1
        assert len({choose(T, R, C) for T in range(1, 129)}) > 1


def test_every_tile_shape_computes_the_same_product(device, generator):
    case = inputs(3, 96, 1280, 128, device, generator)
    wanted = w4a16_matmul_ref(**case).double()
    for config in {Config(c.block_r, c.block_t, c.splits, 4, 3) for c in CONFIGS if c.splits != 4}:
        y = w4a16_matmul(**case, config=config).double()
        assert ((y - wanted).square().mean() / wanted.square().mean()).sqrt() < 2e-3


def test_counters_are_zeros_again_after_every_product(device, generator):
    case = inputs(3, 200, 1280, 128, device, generator)
    for _ in range(2):
        w4a16_matmul(**case, config=Config(64, 16, 4, 4, 3))
        counters = arrival_counters(case["x"].device, 1)
        assert len(counters) and not counters.any()


def test_nothing_outside_the_tensors_is_read_or_written(device, generator):
    case = inputs(3, 70, 256, 128, device, generator)
    wanted = w4a16_matmul(**case)

    def inside(tensor, n_guard=2):
        """The same values in the middle of a buffer that is NaN, or 255, everywhere else."""
        bad = torch.nan if tensor.is_floating_point() else 255
        shape = (len(tensor) + 2 * n_guard, *tensor.shape[1:])
        buffer = torch.full(shape, bad, dtype=tensor.dtype, device=device)
        buffer[n_guard:-n_guard] = tensor
        return buffer, buffer[n_guard:-n_guard]

    guarded = {k: inside(case[k])[1] for k in ("x", "packed", "scale", "zero")}
    buffer, out = inside(torch.zeros_like(wanted))
    w4a16_matmul(**case | guarded, out=out)
    assert torch.equal(out, wanted)
    assert bool(buffer[:2].isnan().all()) and bool(buffer[-2:].isnan().all())


@pytest.mark.parametrize(
    "change,message",
    [
        ({"x": torch.zeros(2, 256)}, "x must be float16 or bfloat16, got float32"),
        ({"x": torch.zeros(256, 2).half().T}, "x must be contiguous"),
        ({"x": torch.zeros(0, 256).half()}, r"T must be 1\.\.\d+, got 0"),
        ({"packed": torch.zeros(70, 64).byte()}, r"packed must be \[any, 128\], got \[70, 64\]"),
        ({"packed": torch.zeros(70, 128)}, "packed must be uint8, got float32"),
        ({"scale": torch.zeros(70, 2)}, "scale must be float16, got float32"),
        ({"zero": torch.zeros(70, 1).half()}, r"zero must be \[70, 2\], got \[70, 1\]"),
        (
            {"group_size": 48},
            "group_size must be one of .* and divide C = 256, got 48",
        ),
        ({"out": torch.zeros(3, 71).half()}, r"out must be \[3, 70\]"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_does_not_fit_is_refused(change, message, device, generator):
    case = inputs(3, 70, 256, 128, device, generator)
    change = {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in change.items()}
    with pytest.raises(ValueError, match=message):
        w4a16_matmul(**case | change)


def test_a_long_prompt_goes_through_in_parts(device, generator, monkeypatch):
    monkeypatch.setattr("hspec_kernels.w4a16_matmul._MAX_ROWS", 16)
    case = inputs(33, 64, 128, 128, device, generator)
    wanted = w4a16_matmul_ref(**case).double()
    y = w4a16_matmul(**case).double()
    assert ((y - wanted).square().mean() / wanted.square().mean()).sqrt() < 2e-3
