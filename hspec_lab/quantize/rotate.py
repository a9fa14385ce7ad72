"""Rotations that leave a model's function as it is and spread its outliers over all channels.

The residual stream x becomes x' = x Q with an orthogonal Q.  A norm's gain does not commute with
Q, so gains go into the matrices that read the norm; a norm without gain does: |x Q| = |x|.

    matrix                      rotated
    reads a norm with gain g    W diag(g) Q        q, k, v, gate, up, the output layer
    writes the stream           Q^T W, bias b Q    o, down
    embedding                   E Q

A model with tied embeddings becomes one with two, which differ by the last gain.  What the last
norm puts out, the features that a draft head reads, was f = g * x / rms(x) and is f' = (f / g) Q.
A head that reads and guesses f' has, with fc = [fc1 fc2] over the embedding and the feature:

    fc' = [fc1 Q,  fc2 diag(g) Q]        out' = Q^T diag(1 / g)        guess' = (guess / g) Q

Rotated folders carry the id of their basis, so that a head never meets a model of another one.

    cost    three products of weights with Q; nothing while decoding
    error   fp32 rounding of those products
    source  Ashkboos et al. 2024, QuaRot, arXiv 2404.00456
"""

import hashlib

import torch
from torch import Tensor

from hspec_lab.model.checkpoint import UNITS
from hspec_lab.model.shape import ModelShape
from hspec_lab.quantize.fold import NORMS, Tensors

# entries of Q are told apart in these steps: finer than any two bases, coarser than fp32 rounding
_BASIS_STEPS = 2**14


def orthogonal(n: int, seed: int = 0) -> Tensor:
    """A random orthogonal matrix that is as much Hadamard as n allows.

    Random signs times the Hadamard matrix of the largest power of two in n, Kronecker a random
    orthogonal matrix of the odd rest: every entry of a row counts, none much more than others.

    Returns:
        fp32 [n, n], orthogonal to 1e-6 (its product with itself in fp64); computed in fp64.
    """
    generator = torch.Generator().manual_seed(seed)
    power = n & -n
    hadamard = torch.ones(1, 1, dtype=torch.float64)
    while len(hadamard) < power:
        hadamard = torch.kron(torch.tensor([[1.0, 1.0], [1.0, -1.0]]).double(), hadamard)
    drawn = torch.randn(n // power, n // power, generator=generator, dtype=torch.float64)
    rest, upper = torch.linalg.qr(drawn)
    rest = (rest * upper.diagonal().sign()).contiguous()
    signs = torch.randint(0, 2, (n, 1), generator=generator) * 2 - 1
    return (signs * torch.kron(hadamard * power**-0.5, rest)).float()


def basis_id(Q: Tensor, gain: Tensor) -> str:
    """Twelve hex digits that name the basis of a rotated model's features.

    Args:
        Q: fp32 [hidden, hidden].
        gain: fp32 [hidden], of the model's last norm before the rotation.
    """
    steps = (Q.double() * _BASIS_STEPS).round().to(torch.int32)
    content = hashlib.sha256(steps.cpu().numpy().tobytes())
    content.update(gain.float().cpu().numpy().tobytes())
    return content.hexdigest()[:12]


def _check(Q: Tensor, hidden: int) -> None:
    if Q.shape != (hidden, hidden):
        raise ValueError(
            f"a rotation of {hidden} channels is [{hidden}, {hidden}], got {list(Q.shape)}"
        )


def rotate_layer(tensors: Tensors, shape: ModelShape, Q: Tensor) -> Tensors:
    """Rotate the residual stream that one layer reads and writes; its norms' gains become ones.

    Args:
        tensors: of one layer, fp32, named as in a checkpoint without the prefix.
        Q: fp32 [hidden, hidden], orthogonal, the same for all layers and both ends.

    Returns:
        The layer's tensors; those given stay as they are.
    """
    _check(Q, shape.hidden)
    rotated = dict(tensors)
    for unit, norm in NORMS.items():
        gain = tensors[norm]
        rotated[norm] = torch.ones_like(gain)
        for name in UNITS[unit]:
            rotated[f"{name}.weight"] = (tensors[f"{name}.weight"] * gain) @ Q
    for name in (*UNITS["o"], *UNITS["down"]):
        rotated[f"{name}.weight"] = Q.T @ tensors[f"{name}.weight"]
        if (bias := tensors.get(f"{name}.bias")) is not None:
            rotated[f"{name}.bias"] = bias @ Q
    return rotated


def rotate_ends(
    embedding: Tensor, lm_head: Tensor | None, gain: Tensor, Q: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Rotate what lies before the first layer and behind the last.

    Args:
        embedding: fp32 [V, hidden].
        lm_head: fp32 [V, hidden]; None where it is tied to the embedding.
        gain: fp32 [hidden], of the last norm.

    Returns:
        Embedding, output layer and the last norm's gain, now ones.  The first two always differ:
        the rotated model is not tied.
    """
    _check(Q, len(gain))
    head = embedding if lm_head is None else lm_head
    return embedding @ Q, (head * gain) @ Q, torch.ones_like(gain)


def rotate_values(tensors: Tensors, shape: ModelShape, seed: int = 0) -> Tensors:
    """Rotate the values within each head, and the inputs of `o` that are mixtures of them.

    Args:
        tensors: of one layer, as in `rotate_layer`.

    Returns:
        The layer's tensors; those given stay as they are.
    """
    D = shape.head_dim
    R = orthogonal(D, seed)
    v, o, bias = (f"self_attn.{name}" for name in ("v_proj.weight", "o_proj.weight", "v_proj.bias"))
    by_head = tensors[v].view(shape.kv_heads, D, -1)
    rotated = tensors | {v: (R.T @ by_head).flatten(0, 1)}
    rotated[o] = (tensors[o].view(-1, shape.heads, D) @ R).flatten(1)
    if bias in tensors:
        rotated[bias] = (tensors[bias].view(shape.kv_heads, D) @ R).flatten()
    return rotated


def check_gain(gain: Tensor) -> None:
    """ValueError when the last norm has a gain of zero, behind which a feature cannot be known."""
    if n_zero := int((gain == 0).sum()):
        raise ValueError(
            f"the last norm has {n_zero} gains of zero: features cannot be rotated through them, "
            "quantize the model without a rotation"
        )


def rotate_head(head_tensors: Tensors, gain: Tensor, Q: Tensor) -> Tensors:
    """Make an EAGLE head read and guess the features of its rotated model.

    Args:
        head_tensors: of the head's checkpoint, fp32: `fc.weight` [hidden, 2 * hidden] and the rest.
        gain: fp32 [hidden], of the model's last norm before the rotation.
        Q: fp32 [hidden, hidden], the model's.

    Returns:
        All tensors of the rotated head, `out.weight` [hidden, hidden] among them.

    Raises:
        ValueError: a gain of zero, behind which a feature cannot be known.
    """
    _check(Q, len(gain))
    check_gain(gain)
    embedding, feature = head_tensors["fc.weight"].chunk(2, dim=1)
    fc = torch.cat([embedding @ Q, (feature * gain) @ Q], dim=1)
    out = (Q / gain[:, None]).T
    # a head that was rotated before takes its guesses to the basis it was given then
    before = head_tensors.get("out.weight")
    out = out.contiguous() if before is None else out @ before
    return head_tensors | {"fc.weight": fc, "out.weight": out}
