"""Pictures in 256 colours: read back by hand, colour by colour."""

import struct
import zlib

import numpy as np
from palette import choose, encode


def decode(png: bytes) -> np.ndarray:
    """Colours [height, width, 3] of a PNG with a palette and no filters."""
    at, parts = 8, {}
    while at < len(png):
        (size,) = struct.unpack(">I", png[at : at + 4])
        name, data = png[at + 4 : at + 8], png[at + 8 : at + 8 + size]
        assert struct.unpack(">I", png[at + 8 + size : at + 12 + size])[0] == zlib.crc32(
            name + data
        )
        parts[name], at = data, at + 12 + size
    width, height = struct.unpack(">II", parts[b"IHDR"][:8])
    rows = np.frombuffer(zlib.decompress(parts[b"IDAT"]), np.uint8).reshape(height, width + 1)
    assert not rows[:, 0].any()
    return np.frombuffer(parts[b"PLTE"], np.uint8).reshape(-1, 3)[rows[:, 1:]]


def test_a_picture_is_read_back_as_it_was_written():
    rng = np.random.default_rng(0)
    colours, indices = rng.integers(0, 256, (7, 3)), rng.integers(0, 7, (5, 11), dtype=np.uint8)
    assert np.array_equal(decode(encode(indices, colours)), colours[indices])


def test_few_colours_stay_as_they_are():
    colours = np.array([[0, 0, 0], [1, 0, 0], [255, 255, 255]])
    assert choose(colours, np.array([5, 1, 9])) is colours


def test_a_rare_colour_far_from_all_others_is_kept():
    greys = np.repeat(np.arange(200)[:, None], 3, axis=1)
    colours = np.concatenate([greys, greys + [1, 0, 0], [[255, 0, 255]]])
    counts = np.full(len(colours), 1000)
    counts[-1] = 1
    assert [255, 0, 255] in choose(colours, counts).tolist()
    assert len(choose(colours, counts)) == 256
