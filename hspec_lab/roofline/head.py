"""What an EAGLE-2 draft costs: passes of a head of one layer, and choosing among its guesses."""

from dataclasses import replace

import numpy as np

from hspec_lab.device import Device
from hspec_lab.roofline.family import Families, families_for
from hspec_lab.roofline.shape import Shape
from hspec_lab.roofline.work import Work, attention, launches_us, product
from hspec_lab.scheme import Scheme

# rows that a draft ingests of what the last round accepted; more cost no more below a tile
INGESTED = 4


def head_works(
    shape: Shape,
    scheme: Scheme,
    output: Scheme,
    rows: np.ndarray,
    out: np.ndarray,
    context: int,
    kind: str,
    families: Families,
) -> list[Work]:
    """The modules of a head's pass over each of `rows`, logits of `out` of them, launches last."""
    one = replace(shape, layers=1)
    found = [product("fc", (shape.hidden, 2 * shape.hidden), rows, scheme, kind, families)]
    found += [product(m, size, rows, scheme, kind, families) for m, size in one.matrices.items()]
    found.append(attention(one, replace(scheme, kv=16), rows, context, kind, families))
    head = (shape.vocab, shape.hidden)
    found.append(product("lm_head", head, out, output, kind, families))
    launches = families.layer_launches + families.head_launches
    launches += sum(work.launches for work in found)
    nothing = np.zeros(len(rows))
    return [*found, Work("launches", families.attention, nothing, nothing, nothing, launches)]


def draft_us(
    shape: Shape,
    head: Scheme,
    output: Scheme,
    depth: int,
    top_k: int,
    context: int,
    device: Device,
    families: Families | None = None,
) -> np.ndarray:
    """us of whole drafts of depths 0..`depth`, float64 [depth + 1]; entry 0 is NaN.

    The first pass ingests what the last round accepted, each further one runs a level of `top_k`
    nodes.  On a GPU a level runs together with the levels above it, see `model.fused`.

    Args:
        shape: of the model that the head drafts for; the head is one layer of it.
        head, output: how the head's own layers and the model's output layer are stored.

    Raises:
        ValueError: depth or top_k below 1, a device without the peak, or no kernel family.
    """
    if depth < 1 or top_k < 1:
        raise ValueError(f"a draft has depth and top_k >= 1, got {depth!r} and {top_k!r}")
    families = families or families_for(device)
    levels = np.arange(1, depth)
    again = levels if device.kind == "gpu" else np.ones_like(levels)
    rows = np.concatenate([[INGESTED], top_k * again])
    out = np.concatenate([[1], np.full(depth - 1, top_k)])
    found = head_works(shape, head, output, rows, out, context, device.kind, families)
    us = launches_us(found[-1], 1, rows, families) + families.head_us
    us = us + sum(work.us(device) for work in found[:-1])
    return np.concatenate([[np.nan], np.cumsum(us)])
