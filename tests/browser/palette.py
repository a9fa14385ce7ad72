"""Screenshots as small files: 256 colours are plenty for text and flat areas.

The browser has decoded the picture already, so it hands over the pixels; what is left is to choose
the colours and to write a PNG of one byte per pixel.
"""

import base64
import struct
import zlib

import numpy as np
from playwright.sync_api import Page

_PIXELS = """async (png) => {
    const picture = await createImageBitmap(await (await fetch(png)).blob());
    const canvas = new OffscreenCanvas(picture.width, picture.height);
    const context = canvas.getContext("2d");
    context.drawImage(picture, 0, 0);
    const { data } = context.getImageData(0, 0, picture.width, picture.height);
    let text = "";
    for (let at = 0; at < data.length; at += 32768)
        text += String.fromCharCode(...data.subarray(at, at + 32768));
    return [picture.width, picture.height, btoa(text)];
}"""
_COMMON = 160  # colours chosen by how often they occur; the others by how far off they are


def small(png: bytes, page: Page) -> bytes:
    """The same picture in 256 colours; `page` is any page of the browser."""
    address = f"data:image/png;base64,{base64.b64encode(png).decode()}"
    width, height, text = page.evaluate(_PIXELS, address)
    pixels = np.frombuffer(base64.b64decode(text), dtype="<u4") & 0xFFFFFF
    packed, place, counts = np.unique(pixels, return_inverse=True, return_counts=True)
    colours = packed.view(np.uint8).reshape(-1, 4)[:, :3].astype(np.int32)
    chosen = choose(colours, counts)
    nearest = ((colours[:, None] - chosen[None]) ** 2).sum(axis=-1).argmin(axis=1)
    return encode(nearest[place].astype(np.uint8).reshape(height, width), chosen)


def choose(colours: np.ndarray, counts: np.ndarray, n: int = 256) -> np.ndarray:
    """At most n of the colours [C, 3]: the common ones, then the one worst served, and again."""
    if len(colours) <= n:
        return colours
    chosen = list(np.argsort(counts)[::-1][: min(_COMMON, n)])
    far = ((colours[:, None] - colours[chosen][None]) ** 2).sum(axis=-1).min(axis=1)
    while len(chosen) < n:
        # a rare colour may be a thin line that matters
        chosen.append(int((far * np.sqrt(counts)).argmax()))
        far = np.minimum(far, ((colours - colours[chosen[-1]]) ** 2).sum(axis=-1))
    return colours[chosen]


def encode(indices: np.ndarray, colours: np.ndarray) -> bytes:
    """A PNG of uint8 [height, width] places in a palette [at most 256, 3]."""
    height, width = indices.shape
    head = struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)
    # a zero before each row: no filter, which suits palettes
    rows = np.pad(indices, [(0, 0), (1, 0)]).tobytes()
    parts = [(b"IHDR", head), (b"PLTE", colours.astype(np.uint8).tobytes())]
    parts += [(b"IDAT", zlib.compress(rows, 9)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(name, data) for name, data in parts)


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
