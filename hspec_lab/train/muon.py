"""Muon: momentum whose update matrix is orthogonalised before it is applied.

The hidden matrices of a small transformer learn in roughly half the tokens AdamW needs.
PyTorch's own `torch.optim.Muon` always orthogonalises in bfloat16, which a CPU without bf16 units
runs a hundred times slower than fp32; here the dtype follows the device, and matrices of one
shape are stacked into one batched product.

    source   Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks"
    cost     15 products of [R, R] x [R, C] per matrix and step, R <= C
"""

import torch
from torch import Tensor

# quintic Newton-Schulz coefficients: singular values land in 0.7..1.2 after five rounds
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
ROUNDS = 5


def has_fast_bf16(device: torch.device | str) -> bool:
    """Whether bf16 products are at least as fast as fp32 ones on this device."""
    if torch.device(device).type == "cuda":
        return True
    return torch.ops.mkldnn._is_mkldnn_bf16_supported()


def orthogonalise(matrices: Tensor) -> Tensor:
    """Push the singular values of a stack [N, R, C] towards one; fp32."""
    a, b, c = COEFFICIENTS
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    x = x.bfloat16() if has_fast_bf16(x.device) else x
    for _ in range(ROUNDS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    x = x.float()
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, orthogonalised per matrix; only for 2-D parameters."""

    def __init__(self, params, lr: float = 0.02, momentum: float = 0.95):
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[Tensor]] = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    by_shape.setdefault(parameter.shape, []).append(parameter)
            for shape, parameters in by_shape.items():
                updates = []
                for parameter in parameters:
                    state = self.state[parameter]
                    if "momentum_buffer" not in state:
                        state["momentum_buffer"] = torch.zeros_like(parameter)
                    buffer = state["momentum_buffer"]
                    buffer.lerp_(parameter.grad, 1 - group["momentum"])
                    updates.append(parameter.grad.lerp(buffer, group["momentum"]))
                step = group["lr"] * max(1.0, shape[0] / shape[1]) ** 0.5
                for parameter, update in zip(
                    parameters, orthogonalise(torch.stack(updates)), strict=True
                ):
                    parameter.add_(update, alpha=-step)
