"""The MLP's gate: values by hand, rows alone, what must stay as it was."""

import pytest
import torch

from hspec_kernels.silu_mul import silu_mul, silu_mul_ref

BOTH = pytest.mark.parametrize("gated", [silu_mul_ref, silu_mul])
HALF = torch.float16


@BOTH
def test_silu_of_the_first_half_multiplies_the_second(gated, device):
    # silu(0) = 0, silu(80) = 80 and silu(-80) = 0 in fp16, silu(1) = 0.7310586
    gate_up = torch.tensor([[0.0, 80.0, -80.0, 1.0, 5.0, 0.5, 100.0, 1000.0]], dtype=HALF)
    y = gated(gate_up.to(device))
    wanted = torch.tensor([[0.0, 40.0, 0.0, 731.0586]], dtype=HALF, device=device)
    assert torch.equal(y, wanted)  # -0 counts as 0


@BOTH
def test_each_row_has_its_own_gates(gated, device):
    gate_up = torch.tensor([[80.0, 1.0], [80.0, 2.0], [0.0, 3.0]], dtype=HALF, device=device)
    assert gated(gate_up).tolist() == [[80], [160], [0]]


def test_neighbours_of_every_tensor_are_left_alone(device, generator):
    gate_up = torch.full((4, 10), torch.nan, dtype=HALF, device=device)
    gate_up[1:3] = torch.randn(2, 10, generator=generator)
    out = torch.full((4, 5), 7.0, dtype=HALF, device=device)
    y = silu_mul(gate_up[1:3], out=out[1:3])
    assert y.data_ptr() == out[1].data_ptr() and (out[[0, 3]] == 7).all()
    assert torch.equal(y, silu_mul_ref(gate_up[1:3]))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"gate_up": torch.zeros(2, 8)}, "gate_up must be float16 or bfloat16, got float32"),
        ({"gate_up": torch.zeros(8, dtype=HALF)}, r"gate_up must be \[any, any\], got \[8\]"),
        ({"gate_up": torch.zeros(8, 2, dtype=HALF).T}, "gate_up must be contiguous"),
        ({"gate_up": torch.zeros(0, 8, dtype=HALF)}, "T must be 1..1073741824, got 0"),
        ({"gate_up": torch.zeros(2, 1, dtype=HALF)}, "I must be 1..33554432, got 0"),
        (
            {"gate_up": torch.zeros(2, 7, dtype=HALF)},
            r"gate_up must be \[T, 2 \* I\], got \[2, 7\]",
        ),
        ({"out": torch.zeros(2, 8, dtype=HALF)}, r"out must be \[2, 4\], got \[2, 8\]"),
        ({"out": torch.zeros(2, 4)}, "out must be float16, got float32"),
    ],
)
def test_what_does_not_fit_is_refused(change, message, device):
    given = {"gate_up": torch.zeros(2, 8, dtype=HALF)} | change
    with pytest.raises(ValueError, match=message):
        silu_mul(**{name: tensor.to(device) for name, tensor in given.items()})
