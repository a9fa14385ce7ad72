"""Made-up devices, kernels and shapes whose times can be worked out by hand."""

from pathlib import Path

from hspec_lab.device import Device, Number
from hspec_lab.roofline import Families, Family, Shape
from hspec_lab.scheme import parse

W16 = parse("w16a16")
SHAPE = Shape("s", 64, 128, 3, 4, 2, 16, 100, 4096)
# weights of a layer of SHAPE: qkv 128 x 64, o 64 x 64, gate_up 256 x 64, down 64 x 128
WEIGHTS = 3 * (128 * 64 + 64 * 64 + 256 * 64 + 64 * 128) + 100 * 64


def a_device(bandwidth=1e12, fp16=1e15, kind="gpu", **peaks):
    numbers = {"bandwidth": bandwidth, "memory": 1e9, "processors": 1.0, "clock": 1e9}
    peaks = {"fp16": fp16} | peaks
    return Device(
        "made-up",
        "Made up",
        kind,
        "9.0",
        {key: Number(value, "this test") for key, value in numbers.items()},
        {key: Number(value, "this test") for key, value in peaks.items()},
        Path("made-up.toml"),
    )


def bare(operand="fp16", launch_us=0.0, **values):
    """Families that lose nothing: all of the bandwidth, all of the peak, no steps, no launches."""
    family = Family(operand=operand, bandwidth_share=1.0, peak_share=1.0, **values)
    keys = ("w16a16", "w8a16", "w8a8", "w4a16", "w4a8", "fp32")
    attends = Family(operand=operand, bandwidth_share=1.0, peak_share=1.0)
    return Families(products=dict.fromkeys(keys, family), attention=attends, launch_us=launch_us)
