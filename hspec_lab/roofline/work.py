"""Time of forward passes by a roofline: bytes, operations and instructions against a device's.

    product     max(bytes / bandwidth, operations / peak, unpacking / issue rate), each over the
                share that its family reaches, and what does not overlap added
    attention   the same with the bytes of keys and values and 4 * rows * context * heads * D
    launches    kernels * what one costs, and masks where several rows attend

Rows of activations are not counted: a few stay in a cache.  Nor are a pass's weights that a cache
still holds from the last pass: models smaller than it are faster than this says.

    source  LLM-Viewer, Yuan et al. 2024, arXiv 2402.16363, for the idea of a roofline a module
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from hspec_lab.device import Device
from hspec_lab.roofline.family import Families, Family, families_for
from hspec_lab.roofline.shape import Shape, kv_token_bytes, matrix_bytes
from hspec_lab.scheme import Scheme

PREFILL_CHUNK = 512
COLUMNS = ("n", "module", "bytes", "flops", "us", "bound_by")
_BOUNDS = np.array(["memory", "compute", "unpacking"])


@dataclass(frozen=True, eq=False)
class Work:
    """What one module of a pass does, for each of N numbers of rows; sums over its layers.

    Attributes:
        n_bytes, flops, instructions: float64 [N].
        launches: of kernels.
    """

    module: str
    family: Family
    n_bytes: np.ndarray
    flops: np.ndarray
    instructions: np.ndarray
    launches: int = 0

    def ceilings_us(self, device: Device) -> np.ndarray:
        """us [3, N] of reading, multiplying and unpacking alone."""
        family = self.family
        peak = device.peak(family.operand) * family.peak_share if self.flops.any() else 1.0
        issue = device.issued_per_s * family.peak_share if self.instructions.any() else 1.0
        read = self.n_bytes / (device.bytes_per_s * family.bandwidth_share)
        return 1e6 * np.stack([read, self.flops / peak, self.instructions / issue])

    def us(self, device: Device) -> np.ndarray:
        """us [N], launches left out."""
        ceilings = self.ceilings_us(device)
        longest = ceilings.max(axis=0)
        return longest + (1 - self.family.overlap) * (ceilings.sum(axis=0) - longest)


def product(
    module: str,
    size: tuple[int, int],
    rows: np.ndarray,
    scheme: Scheme,
    kind: str,
    families: Families,
    times: int = 1,
) -> Work:
    """`times` products of rows with matrices of R outputs and C inputs."""
    (R, C), family = size, families.of(scheme, kind)
    computed, unpacking = family.tiled(np.asarray(rows, dtype=np.int64))
    # some schemes take two products on a CPU, see `quant.int4`
    planes = 2 if kind == "cpu" and scheme.rows == 16 and _two_planes(scheme) else 1
    return Work(
        module,
        family,
        np.full(len(computed), times * matrix_bytes(scheme, R, C, kind)),
        2.0 * planes * times * R * C * computed,
        1.0 * times * R * C * unpacking,
        times * family.launches * planes,
    )


def _two_planes(scheme: Scheme) -> bool:
    return scheme.grid == "mxfp4" or (
        scheme.grid == "int"
        and scheme.bits > 4
        and not (scheme.bits == 8 and scheme.group is None and not scheme.zero)
    )


def attention(
    shape: Shape, scheme: Scheme, rows: np.ndarray, context: int, kind: str, families: Families
) -> Work:
    """Attending, in all layers, from rows behind `context` tokens to these and to each other."""
    rows = np.asarray(rows, dtype=np.float64)
    seen, width = context + rows, shape.heads * shape.head_dim
    return Work(
        "attention",
        families.attention,
        shape.layers * seen * kv_token_bytes(shape, scheme, kind),
        4.0 * shape.layers * rows * seen * width,
        np.zeros(len(rows)),
    )


def works(
    shape: Shape,
    scheme: Scheme,
    rows: Sequence[int],
    context: int,
    kind: str,
    families: Families,
    output_rows: int | None = None,
) -> list[Work]:
    """The modules of a pass over each of `rows`, launches last.

    Args:
        output_rows: rows of which logits are computed; None: all.
    """
    rows = np.asarray(rows, dtype=np.int64)
    out = rows if output_rows is None else np.full(len(rows), output_rows)
    found = [
        product(module, size, rows, scheme, kind, families, times=shape.layers)
        for module, size in shape.matrices.items()
    ]
    found.append(attention(shape, scheme, rows, context, kind, families))
    head = (shape.vocab, shape.hidden)
    found.append(product("lm_head", head, out, scheme.output, kind, families))
    embedding = rows * shape.hidden * (4 if kind == "cpu" else scheme.embedding / 8)
    nothing = np.zeros(len(rows))
    found.append(Work("embedding", families.attention, embedding, nothing, nothing))
    launches = shape.layers * families.layer_launches + families.pass_launches
    launches += sum(work.launches for work in found)
    return [*found, Work("launches", families.attention, nothing, nothing, nothing, launches)]


def launches_us(launches: Work, layers: int, rows: np.ndarray, families: Families) -> np.ndarray:
    """us [N] of a pass's launches and masks."""
    masks = layers * families.mask_us * (np.asarray(rows) > 1)
    return launches.launches * families.launch_us + masks


def _times(found: list[Work], shape: Shape, rows, device: Device, families: Families) -> list:
    """us of every module, [N] each; the last one's are the launches'."""
    times = [work.us(device) for work in found[:-1]]
    return [*times, launches_us(found[-1], shape.layers, rows, families)]


def _checked(rows: Sequence[int], context: int) -> np.ndarray:
    rows = np.asarray(rows)
    if rows.ndim != 1 or not len(rows) or rows.dtype.kind not in "iu" or rows.min() < 1:
        raise ValueError(f"rows must be whole numbers >= 1, got {rows.tolist()!r}")
    if context < 0:
        raise ValueError(f"context must be a number of tokens >= 0, got {context!r}")
    return rows


def pass_us(
    shape: Shape,
    scheme: Scheme,
    rows: Sequence[int],
    context: int,
    device: Device,
    families: Families | None = None,
    output_rows: int | None = None,
) -> np.ndarray:
    """us of a forward pass over each of `rows` behind `context` tokens, float64 [N].

    Raises:
        ValueError: no kernel family for the scheme, or the device lacks the peak that it needs.
    """
    rows, families = _checked(rows, context), families or families_for(device)
    found = works(shape, scheme, rows, context, device.kind, families, output_rows)
    return np.sum(_times(found, shape, rows, device, families), axis=0)


def pass_table(
    shape: Shape,
    scheme: Scheme,
    rows: Sequence[int],
    context: int,
    device: Device,
    families: Families | None = None,
    output_rows: int | None = None,
) -> pd.DataFrame:
    """The same by module: n, module, bytes, flops, us, bound_by; `us` of an n adds up to its pass.

    `bound_by` is memory, compute, unpacking or launches, whichever takes longest.
    """
    rows, families = _checked(rows, context), families or families_for(device)
    found = works(shape, scheme, rows, context, device.kind, families, output_rows)
    tables = []
    for work, us in zip(found, _times(found, shape, rows, device, families), strict=True):
        bound = _BOUNDS[work.ceilings_us(device).argmax(axis=0)]
        bound = np.full(len(rows), "launches") if work is found[-1] else bound
        columns = (rows, work.module, work.n_bytes, work.flops, us, bound)
        tables.append(pd.DataFrame(dict(zip(COLUMNS, columns, strict=True))))
    return pd.concat(tables, ignore_index=True).sort_values("n", kind="stable", ignore_index=True)


def prefill_us(
    shape: Shape,
    scheme: Scheme,
    n_tokens: int,
    device: Device,
    families: Families | None = None,
) -> float:
    """us of reading a prompt in chunks, with the logits of its last token."""
    if n_tokens < 1:
        raise ValueError(f"a prompt has at least one token, got {n_tokens!r}")
    total = 0.0
    for start in range(0, n_tokens, PREFILL_CHUNK):
        chunk = [min(PREFILL_CHUNK, n_tokens - start)]
        total += pass_us(shape, scheme, chunk, start, device, families, output_rows=1)[0]
    return float(total)


def knee(scheme: Scheme, device: Device, families: Families | None = None) -> float:
    """Rows at which multiplying with a large matrix takes as long as reading it, tiles apart.

    Peaks as the device's file says them, nothing lost: peak * bytes a weight / (2 * bandwidth).
    """
    families = families or families_for(device)
    side = 1 << 12
    n_bytes = matrix_bytes(scheme, side, side, device.kind) / side**2
    peak = device.peak(families.of(scheme, device.kind).operand)
    return peak * n_bytes / (2 * device.bytes_per_s)
