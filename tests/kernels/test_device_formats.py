"""Storage formats on the device: products of stored weights, sizes, rows, refusals, models."""

import json

import pytest
import torch
import torch.nn.functional as F

from hspec_kernels.case import rms_ratio
from hspec_lab.config import CPU_FORMATS, DEVICE_FORMATS
from hspec_lab.model import Transformer
from hspec_lab.model.fused import FusedTransformer
from hspec_lab.model.synthetic import SyntheticCheckpoint
from hspec_lab.quant import device as module
from hspec_lab.quant.device import check_device_format, make_device_linear
from hspec_lab.quant.forms import LowRank, PerInput, Plain, rounded
from hspec_lab.scheme import parse

R, C = 48, 256
BITS = {
    "w16a16": 16,
    "w8a16": 8 + 16 / C,
    "w8a8": 8 + 32 / C,
    "fp8": 8 + 32 / C,
    "w4a16-g128": 4.25,
    "w4a16-g32": 5,
    "w4a8-g128": 4.125 + 32 / C,
    "w3a16-g128": 3.25,
    "w2a16-g64": 2.5,
}
# root mean square error of normal weights, in parts of theirs; one bit fewer doubles it
WEIGHT_ERROR = {"w16a16": 3e-4, "w8a16": 9e-3, "w8a8": 8e-3, "fp8": 3e-2, "w4a16-g128": 0.11}
WEIGHT_ERROR |= {"w4a16-g32": 0.09, "w4a8-g128": 0.11, "w3a16-g128": 0.24, "w2a16-g64": 0.5}
every_format = pytest.mark.parametrize("format", DEVICE_FORMATS)


def normal(*shape, seed=0, device="cpu"):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(device)


def exact_rows(format, device, n=5):
    """fp16 rows that lose nothing where the format rounds rows."""
    if format == "fp8":
        rows = (30 * normal(n, C, seed=1)).clamp(-448, 448).to(torch.float8_e4m3fn).float()
        rows[:, 7] = 448.0
    else:
        rows = (30 * normal(n, C, seed=1)).round().clamp(-127, 127)
        rows[:, 7] = 127.0
    return rows.half().to(device)


@pytest.fixture
def make(device):
    def made(format, weight=None, **options):
        weight = normal(R, C) * C**-0.5 if weight is None else weight
        return make_device_linear(weight.to(device), format, torch.float16, **options)

    return made


def test_every_format_has_a_stated_size():
    assert set(BITS) == set(WEIGHT_ERROR) == set(DEVICE_FORMATS)


@every_format
@pytest.mark.parametrize("row_invariant", [False, True], ids=["fast", "invariant"])
def test_a_layer_multiplies_like_its_dequantized_weights(make, format, row_invariant, device):
    linear = make(format, row_invariant=row_invariant)
    x = exact_rows(format, device)
    y = linear(x)
    assert y.dtype == torch.float16 and y.shape == (5, R)
    # rounding weights after scale and zero to fp16, and the result
    assert rms_ratio(y, x.double() @ linear.dequantized().double().T) < 1e-3


@every_format
def test_weights_are_as_near_as_their_bits_allow(make, format):
    weight = normal(R, C) * C**-0.5
    error = rms_ratio(make(format, weight).dequantized().cpu(), weight)
    assert WEIGHT_ERROR[format] / 2 < error < WEIGHT_ERROR[format]


@pytest.mark.parametrize("format, limit", [("w8a8", 0.015), ("w4a8-g128", 0.015), ("fp8", 0.045)])
def test_rows_are_rounded_to_eight_bits_each_by_its_own_scale(make, format, limit, device):
    linear = make(format)
    x = (normal(6, C, seed=2) * 10.0 ** torch.arange(-3, 3)[:, None]).half().to(device)
    x[2] = 0
    y = linear(x).double()
    assert not y[2].any()
    wanted = x.double() @ linear.dequantized().double().T
    for row in (0, 1, 3, 4, 5):
        assert rms_ratio(y[row], wanted[row]) < limit


@every_format
def test_row_invariant_layers_give_a_row_the_same_bits_beside_any_others(make, format, device):
    linear = make(format, row_invariant=True)
    x = normal(17, C, seed=3).half().to(device)
    together = linear(x)
    for n in range(1, 18):
        assert torch.equal(linear(x[:n]), together[:n])
        assert torch.equal(linear(x[n - 1 : n]), together[n - 1 : n])


def test_row_invariant_16_bit_products_all_have_one_shape(make, monkeypatch, device):
    linear, shapes = make("w16a16", row_invariant=True), []

    def seen(rows, weight):
        shapes.append(tuple(rows.shape))
        return real(rows, weight)

    real = F.linear
    monkeypatch.setattr(module.F, "linear", seen)
    for n in (1, 16, 17):
        assert linear(normal(n, C).half().to(device)).shape == (n, R)
    assert shapes == [(16, C)] * 4


@every_format
def test_stored_bytes_are_those_of_its_tensors(make, format):
    linear = make(format, normal(R, C))
    assert linear.effective_bits == pytest.approx(BITS[format])
    assert linear.nbytes == sum(tensor.untyped_storage().nbytes() for tensor in linear.tensors)


@every_format
def test_blocks_of_rows_make_the_same_layer(make, format, monkeypatch):
    whole = make(format)
    monkeypatch.setattr(module, "_BLOCK", 5 * C)
    for one, other in zip(make(format).tensors, whole.tensors, strict=True):
        assert one.is_contiguous()
        assert torch.equal(one.view(torch.uint8), other.view(torch.uint8))


@every_format
def test_a_bias_is_added_and_bf16_weights_are_taken(make, format, device):
    weight, bias = normal(R, C).bfloat16(), normal(R, seed=4)
    x = exact_rows(format, device, 2)
    plain, biased = make(format, weight), make(format, weight, bias=bias.to(device))
    assert torch.equal(biased(x), plain(x) + bias.half().to(device))
    assert torch.equal(plain.dequantized(), make(format, weight.float()).dequantized())


def bf16_weights(*shape):
    """fp32 weights that w16a16 keeps too, whichever 16 bits it is of."""
    return normal(*shape, seed=5).bfloat16().float()


def form_of(format, device="cpu", shape=(R, C)):
    # rounded where the layer lies: devices divide by constants in ways of their own
    return rounded(bf16_weights(*shape).to(device), parse(format))


@every_format
def test_a_form_makes_the_layer_that_its_weights_make(make, format, device):
    linear, x = make(format, bf16_weights(R, C)), normal(3, C, seed=6).half().to(device)
    from_form = make(format, form_of(format, device))
    for one, other in zip(from_form.tensors, linear.tensors, strict=True):
        assert one.dtype == other.dtype and one.shape == other.shape
        assert torch.equal(one.view(torch.uint8), other.view(torch.uint8))
    assert (from_form.format, from_form.nbytes) == (linear.format, linear.nbytes)
    assert torch.equal(from_form.dequantized(), linear.dequantized())
    assert torch.equal(from_form(x), linear(x))


@every_format
def test_a_layer_stands_for_the_weights_of_its_form(make, format, device):
    form = form_of(format, device)
    # scales of this size are the same in bf16 and fp16
    assert torch.equal(make(format, form).dequantized(), form.dequantized())


def test_a_layer_may_have_other_bits_than_its_model(make, device):
    """Bits chosen layer by layer: the form says them, not the model's format."""
    mixed = make("w4a16-g128", form_of("w2a16-g64", device))
    alone = make("w2a16-g64", form_of("w2a16-g64", device))
    assert mixed.format == "w2a16-g64"
    assert torch.equal(mixed.dequantized(), alone.dequantized())


FORMS_WITHOUT_A_KERNEL = {
    "another grid": ("w4a16-g128", form_of("nf4")),
    "another group": ("w4a16-g128", form_of("w4a16-g64")),
    "no zeros": ("w4a16-g128", form_of("w4a16-g128-sym")),
    "rows of 16 bits": ("w8a8", form_of("w8a16")),
    "rows of 8 bits": ("w8a16", form_of("w8a8")),
    "not rounded": ("w4a16-g128", Plain(normal(R, C))),
    "groups along outputs": ("w4a16-g32", PerInput(form_of("w4a16-g32", shape=(C, R * 2)))),
    "a branch": (
        "w4a16-g128",
        LowRank(form_of("w4a16-g128"), normal(R, 2).bfloat16(), normal(2, C).bfloat16()),
    ),
}


@pytest.mark.parametrize(
    "format, form", FORMS_WITHOUT_A_KERNEL.values(), ids=FORMS_WITHOUT_A_KERNEL
)
def test_a_form_without_a_kernel_is_refused(make, format, form):
    with pytest.raises(ValueError) as refusal:
        make(format, form)
    assert str(refusal.value) == (
        f"{format} of the form {form.kind!r} has no kernel; forms with one: "
        f"{', '.join(DEVICE_FORMATS)}"
    )


@pytest.mark.parametrize(
    "format, shape, message",
    [
        ("fp32", (R, C), "fp32 has no kernel; formats with one: w8a16, .*, w16a16"),
        ("w4a16-g64", (R, C), "w4a16-g64 has no kernel"),
        ("w4a8-g128", (R, 192), "w4a8-g128: 192 input features are not a multiple of 128"),
        ("w2a16-g64", (R, 96), "w2a16-g64: 96 input features are not a multiple of 64"),
        ("w8a8", (1, 32769), "w8a8: 32769 input features, rows are rounded up to 32768"),
    ],
)
def test_what_has_no_kernel_is_refused(make, format, shape, message):
    with pytest.raises(ValueError, match=message):
        make(format, torch.ones(shape))


def test_rows_of_32_bits_are_refused(device):
    with pytest.raises(ValueError, match="dtype must be float16 or bfloat16, got torch.float32"):
        make_device_linear(torch.ones(R, C, device=device), "w16a16", torch.float32)


def test_fp8_is_refused_where_tensor_cores_do_not_know_it(make, monkeypatch):
    monkeypatch.setattr("hspec_kernels.fp8_matmul.knows_e4m3", lambda device: False)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    message = "fp8 needs compute capability 8.9, .* has 8.0: take w8a8 or w8a16"
    with pytest.raises(ValueError, match=message):
        make("fp8")
    check_device_format("w8a8", "cuda")


# a made-up model

SHAPE = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "vocab_size": 64,
    "max_position_embeddings": 64,
}
# of logits, in parts of fp32's; mostly from rounding the weights
LOGIT_ERROR = {"w16a16": 2e-3, "fp8": 0.1, "w4a8-g128": 0.35}


@pytest.mark.parametrize("format", LOGIT_ERROR)
def test_a_made_up_model_runs_in_the_formats_of_the_device(format, tmp_path, device):
    (tmp_path / "config.json").write_text(json.dumps(SHAPE))
    checkpoint = SyntheticCheckpoint(str(tmp_path), device=device)
    model = FusedTransformer(checkpoint, format, device=device, dtype=torch.float16)
    plain = Transformer(SyntheticCheckpoint(str(tmp_path)), CPU_FORMATS[0])
    with torch.inference_mode():
        wanted = plain.logits(plain.read([1, 2, 3, 4, 5], plain.new_cache(8)))
        found = model.logits(model.read([1, 2, 3, 4, 5], model.new_cache(8))).cpu()
    assert LOGIT_ERROR[format] / 4 < rms_ratio(found, wanted) < LOGIT_ERROR[format]
