"""8-, 3- and 2-bit matmul: packing, assembly, hand-computed products, refused inputs."""

import pytest
import torch

from hspec_kernels._splits import arrival_counters
from hspec_kernels.case import rms_ratio
from hspec_kernels.cases.wna16_matmul import make
from hspec_kernels.w4a16_matmul import Config
from hspec_kernels.wna16_matmul import (
    BLOCK_C,
    CONFIGS,
    EIGHT_BF16,
    EIGHT_FP16,
    THREE_BF16,
    THREE_FP16,
    TWO_BF16,
    TWO_FP16,
    WIDTH,
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


def words_of(bits, codes):
    """The 16-bit words of one block that holds `codes`, {column: code}, and zeros."""
    q = torch.zeros(1, BLOCK_C[bits], dtype=torch.uint8)
    for column, code in codes.items():
        q[0, column] = code
    packed = pack_wna16(q, bits)[0]
    assert len(packed) == BLOCK_C[bits] * bits // 8
    words = {i: int(word) & 0xFFFF for i, word in enumerate(packed.view(torch.int16))}
    return {i: word for i, word in words.items() if word}


def test_eight_bits_lie_in_halves_of_a_block():
    assert words_of(8, {0: 1, 32: 2, 31: 255}) == {0: 0x0201, 31: 0x00FF}
    assert words_of(8, {64: 3, 127: 128}) == {32: 0x0003, 63: 0x8000}


def test_two_bits_lie_in_eighths_of_a_block():
    assert words_of(2, {0: 1, 32: 2, 64: 3, 224: 2}) == {0: 0b10_00_00_00_00_11_10_01}
    assert words_of(2, {31: 3, 255: 1}) == {31: 0b01_00_00_00_00_00_00_11}


def test_three_bits_lie_in_thirds_of_a_block_and_what_is_over_in_highest_bits():
    assert words_of(3, {5: 0b101, 21: 0b110, 69: 0b111}) == {5: 0b0_111_000_000_110_101}
    assert words_of(3, {80: 1, 160: 2}) == {16: 1, 32: 2}
    assert words_of(3, {240: 0b101, 255: 0b010}) == {0: 1 << 15, 32: 1 << 15, 31: 1 << 15}


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


def permuted(a, b, selector):
    """PTX's byte permutation: the bytes of `a`, then those of `b`, by the selector's digits."""
    source = a.to_bytes(4, "little") + b.to_bytes(4, "little")
    return int.from_bytes(bytes(source[selector >> 4 * i & 7] for i in range(4)), "little")


def looked_up(a, b, c, table):
    """Bit by bit, what the table says of three."""
    bits = (table >> ((a >> i & 1) << 2 | (b >> i & 1) << 1 | c >> i & 1) & 1 for i in range(32))
    return sum(bit << i for i, bit in enumerate(bits))


# what the instructions of the assembly do to 32-bit registers
PTX = {"shr.b32": lambda a, n: a >> n, "lop3.b32": looked_up, "prmt.b32": permuted}
TEXTS = {
    (8, torch.float16): EIGHT_FP16,
    (8, torch.bfloat16): EIGHT_BF16,
    (3, torch.float16): THREE_FP16,
    (3, torch.bfloat16): THREE_BF16,
    (2, torch.float16): TWO_FP16,
    (2, torch.bfloat16): TWO_BF16,
}


def executed(text, n_results, words):
    """Registers [n_results] that the assembly makes of registers `words`."""
    register = {f"${n_results + i}": word for i, word in enumerate(words)}
    for line in text.strip("{}\n").split(";"):
        operation, _, operands = line.strip().partition(" ")
        if operation and operation != ".reg":
            to, *sources = (name.strip() for name in operands.split(","))
            values = [register[x] if x in register else int(x, 0) for x in sources]
            register[to] = PTX[operation](*values)
    return [register[f"${i}"] for i in range(n_results)]


def centred(patterns, bits, dtype):
    """What the kernel makes of the assembly's results, [parts, 2]."""
    numbers = torch.tensor([[n & 0xFFFF, n >> 16] for n in patterns]).to(torch.int16).view(dtype)
    if bits == 8:
        return numbers - 1152 if dtype == torch.float16 else numbers[:2] + numbers[2:]
    mantissa = 10 if dtype == torch.float16 else 7
    places = [p % (16 // bits) if p < 15 else 5 for p in range(len(patterns))]
    at = bits * torch.tensor([place % (mantissa // bits) for place in places])[:, None]
    scaled = numbers * torch.exp2(-at).to(dtype)
    middle = 2.0 ** (mantissa - at) + 2 ** (bits - 1)
    assert torch.equal(middle, middle.to(dtype).float())
    return scaled - middle.to(dtype)


@pytest.mark.parametrize("bits, dtype", TEXTS, ids=str)
def test_the_assembly_takes_words_apart_as_unpacking_does(bits, dtype, generator):
    """For bf16 too, which the interpreter cannot run; two words side by side in a register."""
    n_words, width = {8: 1, 3: 3, 2: 1}[bits], WIDTH[bits]
    n_results = {8: 2 if dtype == torch.float16 else 4, 3: 16, 2: 8}[bits]
    drawn = torch.randint(0, 2**16, (200, n_words, 2), generator=generator)
    ends = torch.tensor([[0, 0xFFFF], [0xFFFF, 0], [0x8000, 1], [0x7F80, 0x80FF]])
    for pair in torch.cat([drawn, ends[:, None].expand(-1, n_words, -1)]):
        block = torch.zeros(BLOCK_C[bits] * bits // 16, dtype=torch.int32)
        block.view(-1, width)[:n_words, :2] = pair.int()
        packed = torch.stack([block & 0xFF, block >> 8], dim=1).to(torch.uint8).view(1, -1)
        codes = unpack_wna16(packed, bits, BLOCK_C[bits]).view(-1, width)[:, :2].int()
        registers = [low | high << 16 for low, high in pair.tolist()]
        found = centred(executed(TEXTS[bits, dtype].value, n_results, registers), bits, dtype)
        assert torch.equal(found.int(), codes[: len(found)] - 2 ** (bits - 1))
        assert torch.equal(found.int().to(dtype), found)


@BOTH
def test_one_scale_of_a_row_is_applied_to_its_sum(multiply, device, generator):
    q = torch.randint(0, 256, (3, 200), generator=generator, dtype=torch.uint8)
    x = torch.randint(-3, 4, (2, 200), generator=generator)
    scale = torch.tensor([[0.3], [0.7], [1 / 3]]).half()
    wanted = ((x @ (q.long() - 128).T).double() * scale.double().T).half()
    packed = pack_wna16(q, 8).to(device)
    y = multiply(x.half().to(device), packed, scale.to(device), None, 8, 200)
    assert torch.equal(y.cpu(), wanted)


@BITS
def test_counters_are_zeros_again_after_every_product(bits, device, generator):
    case = make(3, 200, 1280, bits, 128)(generator, device, torch.float16)
    for _ in range(2):
        y = wna16_matmul(**case, config=Config(64, 16, 4, 4, 3))
        assert rms_ratio(y, wna16_matmul_ref(**case)) < 6e-4
        counters = arrival_counters(case["x"].device, 1)
        assert len(counters) and not counters.any()


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
            for where in (False, True):
                of_rows = {choose(T, R, C, bits, False, where) for T in (1, 16, 24, 64, 500)}
                assert of_rows | {choose(1, R, C, bits, True, where)} <= set(CONFIGS)


def test_sums_of_every_product_of_a_step_fit_tensor_memory():
    """512 columns of 128 rows, shared with the weights: 8 of each product of 16 inputs."""
    for R in (1024, 28672):
        for bits, n_products in ((8, 4), (3, 16), (2, 8)):
            for T in (1, 16, 24, 64, 500):
                for row_invariant in (False, True):
                    tile = choose(T, R, 4096, bits, row_invariant, tensor_memory=True)
                    columns = n_products * (tile.block_t + WIDTH[bits] // 2)
                    assert columns * tile.block_r <= 512 * 128


@pytest.mark.parametrize("block_r,block_t,splits", [(64, 64, 8), (128, 32, 2), (64, 16, 4)])
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
