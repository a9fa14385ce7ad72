import pytest
import torch

from hspec_lab.quant.forms import Grouped, PerInput, rounded
from hspec_lab.quantize.adadim import adadim
from hspec_lab.quantize.calibration import InputSums, output_error
from hspec_lab.scheme import parse

NAMES = ("w4a16-g128", "w3a16-g64", "w4a16", "nf4", "mxfp4")
R, C = 128, 256
LOUD = 20.0


def normal(seed):
    return torch.randn(R, C, generator=torch.Generator().manual_seed(seed))


def with_loud_inputs(seed):
    """A channel in 32 is twenty times larger than the others."""
    weight = normal(seed)
    weight[:, ::32] *= LOUD
    return weight


def with_loud_outputs(seed):
    weight = normal(seed)
    weight[::32] *= LOUD
    return weight


def inputs_seen(scale):
    """Independent inputs of the given spread, fp32 [C]."""
    sums = InputSums(512)
    sums.add(torch.randn(512, C, generator=torch.Generator().manual_seed(7)) * scale)
    return sums.result()


def both_errors(weight, scheme, hessian):
    """Relative errors of groups along the inputs and along the outputs."""
    along_outputs = PerInput(rounded(weight.T.contiguous(), scheme))
    forms = (rounded(weight, scheme), along_outputs)
    return [output_error(weight, form.dequantized(), hessian) for form in forms]


@pytest.mark.parametrize("name", NAMES)
def test_a_few_large_input_channels_get_groups_of_their_own(name):
    form = adadim(with_loud_inputs(0), None, parse(name))
    assert isinstance(form, PerInput) and form.shape == (R, C)


@pytest.mark.parametrize("name", NAMES)
def test_large_rows_keep_groups_along_the_inputs(name):
    weight = with_loud_outputs(0)
    form = adadim(weight, None, parse(name))
    assert isinstance(form, Grouped)
    assert torch.equal(form.dequantized(), rounded(weight, parse(name)).dequantized())


@pytest.mark.parametrize("seen", [False, True], ids=["weights", "outputs"])
@pytest.mark.parametrize("name", (*NAMES, "fp8a16"))
def test_the_smaller_error_is_chosen(name, seen):
    """Also where neither dimension stands out."""
    inputs = inputs_seen(torch.linspace(0.1, 3, C)) if seen else None
    hessian, scheme = inputs.hessian if seen else torch.eye(C), parse(name)
    for make in (normal, with_loud_inputs, with_loud_outputs):
        for seed in range(3):
            weight = make(seed)
            error = output_error(weight, adadim(weight, inputs, scheme).dequantized(), hessian)
            assert error == min(both_errors(weight, scheme, hessian)), (make.__name__, seed)


def test_inputs_decide_and_not_weights_alone():
    """One half of the channels suits groups along the outputs, the other along the inputs."""
    weight = torch.cat([with_loud_inputs(0)[:, : C // 2], with_loud_outputs(0)[:, C // 2 :]], dim=1)
    first = (torch.arange(C) < C // 2).float()
    scheme = parse("w4a16-g64")
    assert isinstance(adadim(weight, inputs_seen(first), scheme), PerInput)
    assert isinstance(adadim(weight, inputs_seen(1 - first), scheme), Grouped)


def test_a_matrix_of_zeros_keeps_groups_along_the_inputs():
    assert isinstance(adadim(torch.zeros(R, C), None, parse("w4a16-g64")), Grouped)


@pytest.mark.parametrize("name", ["w8a8", "w4a8-g128", "fp8", "w4a4", "fp32"])
def test_refuses_products_that_cannot_scale_each_input(name):
    with pytest.raises(ValueError, match="take a format with 16-bit rows, such as w4a16-g128"):
        adadim(normal(0), None, parse(name))


def test_refuses_groups_that_do_not_fit_and_inputs_that_overflowed():
    with pytest.raises(ValueError, match=r"128 against \[96, 256\]"):
        adadim(normal(0)[:96], None, parse("w4a16-g128"))
    with pytest.raises(ValueError, match=r"128 against \[128, 192\]"):
        adadim(normal(0)[:, :192], None, parse("w4a16-g128"))
    with pytest.raises(ValueError, match="has no groups"):
        adadim(normal(0), None, parse("w16a16"))
    with pytest.raises(ValueError, match="not finite"):
        adadim(normal(0), inputs_seen(torch.full((C,), 1e30)), parse("w4a16-g128"))
