"""What is assumed of kernels, or fitted: how much of a device they reach, and in what steps.

No GPU has been measured by this project, so the shares below are wishes: 0.8 of the datasheet's
bandwidth is what it wants of its kernels, 0.6 of the peak is what good products of few rows reach.
`calibrate` replaces them by what a device showed.  Counted, not assumed, are tiles and launches of
this project's kernels, and instructions a weight, which `docs/kernels.md` reads from compiled code.
"""

from dataclasses import dataclass, replace
from itertools import accumulate

import numpy as np

from hspec_lab.device import Device
from hspec_lab.scheme import Scheme

ASSUMED_BANDWIDTH_SHARE = 0.8
ASSUMED_PEAK_SHARE = 0.6


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """One kind of product: what it multiplies in, how well, and in which steps of rows.

    Attributes:
        operand: the type of the device's peak that bounds it, see `device.OPERANDS`.
        bandwidth_share, peak_share: of the device's, reached; the latter also of the instructions
            that it issues.
        tiles: rows that a tile may have; the smallest that holds all rows is taken, else several
            of the largest. (1,): no steps.
        instructions: that unpack a weight, for each of `tiles`; every tile of rows unpacks anew.
            Empty: not counted.
        overlap: how much of the shorter ones hides behind the longest of reading, multiplying and
            unpacking; 1 is the roofline, 0 their sum.
        launches: kernels of one product.
    """

    operand: str
    bandwidth_share: float = ASSUMED_BANDWIDTH_SHARE
    peak_share: float = ASSUMED_PEAK_SHARE
    tiles: tuple[int, ...] = (1,)
    instructions: tuple[float, ...] = ()
    overlap: float = 1.0
    launches: int = 1

    def __post_init__(self):
        for name in ("bandwidth_share", "peak_share"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)!r}")
        if not 0 <= self.overlap <= 1:
            raise ValueError(f"overlap must be 0..1, got {self.overlap!r}")
        if not self.tiles or list(self.tiles) != sorted(set(self.tiles)) or self.tiles[0] < 1:
            raise ValueError(f"tiles must be rising whole numbers >= 1, got {self.tiles!r}")
        if self.instructions and len(self.instructions) != len(self.tiles):
            raise ValueError(f"{len(self.tiles)} tiles have {len(self.instructions)} instructions")

    def tiled(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Rows multiplied, filled up to whole tiles, and instructions a weight; both [N]."""
        tiles = np.asarray(self.tiles)
        which = np.minimum(np.searchsorted(tiles, rows), len(tiles) - 1)
        n_tiles = -(-rows // tiles[which])
        unpacking = np.asarray(self.instructions or (0.0,) * len(tiles))
        return n_tiles * tiles[which], n_tiles * unpacking[which]


@dataclass(frozen=True, slots=True, kw_only=True)
class Families:
    """Everything assumed of one device's code, or fitted to it.

    Attributes:
        products: by `family_key`.
        attention: operand, shares and tiles of attending.
        launch_us: what starting and draining one kernel costs beside its work.
        mask_us: what a layer costs more as soon as several rows attend, by a mask.
        layer_launches, pass_launches: of a layer and of a pass, its products left out.
        head_launches: of a draft head's pass, its layer and products left out; choosing the
            children and ordering the tree included.
        head_us: of a draft head's pass, what is measured beyond all that.
        accept_us, commit_us: a verdict, and keeping its rows.
        gap_us: a round's host work and waiting that no stage covers.
        note: by what all this was found.
    """

    products: dict[str, Family]
    attention: Family
    launch_us: float
    mask_us: float = 0.0
    layer_launches: int = 7
    pass_launches: int = 6
    head_launches: int = 16
    head_us: float = 0.0
    accept_us: float = 0.0
    commit_us: float = 0.0
    gap_us: float = 0.0
    note: str = ""

    def of(self, scheme: Scheme, kind: str) -> Family:
        """The family that multiplies weights of a scheme; ValueError where there is none."""
        key = family_key(scheme, kind)
        if key not in self.products:
            raise ValueError(
                f"{scheme}: no kernel family {key!r}; known: {', '.join(self.products)}"
            )
        return self.products[key]

    def changed(self, key: str, **values) -> "Families":
        """The same with other values of one family; `attention` is one, too."""
        if key == "attention":
            return replace(self, attention=replace(self.attention, **values))
        return replace(self, products=self.products | {key: replace(self.products[key], **values)})


def family_key(scheme: Scheme, kind: str = "gpu") -> str:
    """Which kernel multiplies weights of a scheme: its name without groups and zeros.

    A CPU has one operator for integers that meet rounded rows and one for all of up to 4 bits.
    """
    key = str(scheme.weights).partition("-")[0]
    if kind == "gpu" or scheme.grid not in ("int", "mxfp4"):
        return key
    if scheme.rows < 16:
        return "w8a8"
    plain = scheme.bits == 8 and scheme.group is None and not scheme.zero
    return "w8a16" if plain else "w4a16"


def families_for(device: Device) -> Families:
    """What is assumed where nothing was measured: this project's own code on such a device."""
    return _on_cpu() if device.kind == "cpu" else _on_gpu(device.architecture)


def _on_cpu() -> Families:
    # reading and multiplying take turns on cores whose operators do not prefetch across products:
    # measured curves rise from the second row on (zoo models, Zen 5, 2026-11-21)
    def family(operand: str) -> Family:
        return Family(operand=operand, overlap=0.0)

    return Families(
        # weights of few bits meet 16-bit rows in fp32 registers
        products={
            "fp32": family("fp32"),
            "w8a16": family("fp32"),
            "w8a8": family("int8"),
            "w4a16": family("fp32"),
        },
        attention=family("fp32"),
        launch_us=5.0,
        # several rows: a mask is made, and attention takes it apart into products; assumed
        mask_us=30.0,
        layer_launches=12,
        pass_launches=6,
        accept_us=30.0,
        commit_us=30.0,
        gap_us=30.0,
        note="shares, launch and host times assumed",
    )


# instructions a weight of the chosen tiles of 16, 32, 64 (and 128) rows, bf16 rows, by the major
# number of the architecture; from docs/kernels.md. Ampere's code stands for Ada's and for RTX
# Blackwell's, whose matrix units are used in the same way
_INSTRUCTIONS = {
    "8": {
        "w8a16": (2.73, 3.02, 4.50),
        "w8a8": (2.80, 3.78, 4.83, 9.28),
        "fp8": (),
        "w4a16": (2.89, 3.27, 4.75),
        "w4a8": (4.83, 5.31, 7.08),
        "w3a16": (2.71, 3.02, 4.31),
        "w2a16": (2.68, 2.96, 4.52),
    },
    "9": {
        "w8a16": (3.16, 3.14, 3.75),
        "w8a8": (1.56, 1.61, 1.88, 3.28),
        "fp8": (1.52, 1.72, 2.12),
        "w4a16": (3.31, 3.29, 4.33),
        "w4a8": (2.95, 3.17, 3.75),
        "w3a16": (3.20, 3.20, 4.02),
        "w2a16": (3.09, 3.09, 3.88),
    },
    "10": {
        "w8a16": (5.02, 6.06, 7.62),
        "w8a8": (3.58, 5.05, 7.72, 17.16),
        "fp8": (3.59, 4.97, 7.61),
        "w4a16": (5.23, 6.19, 11.05),
        "w4a8": (6.09, 7.91, 11.28),
        "w3a16": (4.79, 7.11),
        "w2a16": (3.61, 4.03, 5.72),
    },
}
_OPERANDS = {"w8a8": "int8", "w4a8": "int8", "fp8": "fp8"}
_TILES = (16, 32, 64, 128)


def _on_gpu(architecture: str) -> Families:
    counted = _INSTRUCTIONS.get(architecture.partition(".")[0], _INSTRUCTIONS["8"])
    products = {
        # rows of 8 bits are rounded by a kernel of their own
        key: Family(
            operand=_OPERANDS.get(key, "fp16"),
            tiles=_TILES[: len(instructions) or 3],
            # a wider tile never unpacks with less, but for what a compiler happens to save
            instructions=tuple(accumulate(instructions, max)),
            launches=2 if key in ("w8a8", "w4a8") else 1,
        )
        for key, instructions in counted.items()
    }
    return Families(
        products={"w16a16": Family(operand="fp16", tiles=_TILES)} | products,
        # queries of one key head share a tile
        attention=Family(operand="fp16"),
        # inside a CUDA graph; assumed, `hspec measure --suite gpu` measures it
        launch_us=2.0,
        # a layer has 11 launches and a pass 6 more, an EAGLE-2 draft of depth 2 has 57: counted
        # in Triton's interpreter, see docs/LOG.md
        layer_launches=7,
        pass_launches=5,
        head_launches=16,
        accept_us=4.0,
        commit_us=8.0,
        # a few graph launches and one read by the host, assumed
        gap_us=30.0,
        note="shares, launch and host times assumed, tiles and instructions of this project's code",
    )
