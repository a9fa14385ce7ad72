"""The sizes of a model, from its `config.json`, and the bytes that its weights are stored in."""

import json
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from hspec_lab import zoo
from hspec_lab.config import split_model
from hspec_lab.formats import Format
from hspec_lab.scheme import Scheme

# weights of 4-bit planes share a scale and a zero with at most so many inputs on a CPU
_CPU_GROUP = 256


@dataclass(frozen=True, slots=True)
class Shape:
    """What fixes the work of a decoder's forward pass; bytes of norms and biases are left out."""

    name: str
    hidden: int
    inner: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    positions: int
    tied: bool = False

    @property
    def matrices(self) -> dict[str, tuple[int, int]]:
        """Outputs and inputs of a layer's products, in the order in which they run."""
        width = self.heads * self.head_dim
        return {
            "qkv": (width + 2 * self.kv_heads * self.head_dim, self.hidden),
            "o": (self.hidden, width),
            "gate_up": (2 * self.inner, self.hidden),
            "down": (self.hidden, self.inner),
        }


def shape_of(where: str | Path) -> Shape:
    """The shape behind `zoo:name`, `shape:name`, a name that ships, or a folder.

    Raises:
        ValueError: nothing there, or a `config.json` without the sizes.
    """
    folder = _folder(str(where))
    path = folder / "config.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: cannot be read as JSON ({error})") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path}: must hold a JSON object, holds a {type(found).__name__}")
    return _shape(str(where).removeprefix("shape:"), path, found)


def split_reference(reference: str) -> tuple[Shape, Scheme]:
    """Shape and scheme of `where@format`; ValueError where either is none, or no kernel runs it."""
    where, name = split_model(reference)
    format = Format.parse(name)
    if format.reference:
        raise ValueError(f"{reference}: a definition has no kernel whose time follows from a roof")
    return shape_of(where), format.scheme


def _folder(where: str) -> Path:
    if where.startswith("zoo:"):
        return zoo.folder(where.removeprefix("zoo:"))
    shipped = Path(str(resources.files("hspec_profiles") / "shapes"))
    name = where.removeprefix("shape:")
    folder = shipped / name if (shipped / name).is_dir() else Path(name).expanduser()
    if not folder.is_dir():
        names = sorted(path.name for path in shipped.iterdir() if path.is_dir())
        raise ValueError(f"no shape {name!r}; there are {', '.join(names)}, or a folder")
    return folder


def _shape(name: str, path: Path, found: dict) -> Shape:
    def whole(key: str, default: int | None = None) -> int:
        value = found.get(key)
        value = default if value is None else value
        if type(value) is not int or value < 1:
            raise ValueError(f"{path}: {key} must be a whole number >= 1, got {value!r}")
        return value

    heads, hidden = whole("num_attention_heads"), whole("hidden_size")
    return Shape(
        name=name,
        hidden=hidden,
        inner=whole("intermediate_size"),
        layers=whole("num_hidden_layers"),
        heads=heads,
        kv_heads=whole("num_key_value_heads", heads),
        head_dim=whole("head_dim", hidden // heads),
        vocab=whole("vocab_size"),
        positions=whole("max_position_embeddings", 2048),
        tied=bool(found.get("tie_word_embeddings", False)),
    )


def matrix_bytes(scheme: Scheme, R: int, C: int, kind: str = "gpu") -> float:
    """Bytes that a product with a matrix of R outputs and C inputs reads, scales included.

    Args:
        kind: a CPU's operators hold some schemes in more bits than their definition, see `quant`.

    Raises:
        ValueError: a stack, which has a size and no bits.
    """
    if scheme.grid == "bitstack":
        raise ValueError(f"{scheme}: a stack has no bits a weight: give a scheme with some")
    if scheme.grid == "float":
        return R * C * scheme.bits / 8
    if kind == "cpu":
        return _cpu_bytes(scheme, R, C)
    codes, groups = R * C * scheme.bits / 8, R * C / (scheme.group or C)
    if scheme.two_levels:
        return codes + 2 * groups + 4 * R
    scale = {"mxfp4": 1, "e4m3": 4}.get(scheme.grid, 2 if scheme.rows == 16 else 4)
    return codes + groups * (scale + 2 * scheme.zero)


def _cpu_bytes(scheme: Scheme, R: int, C: int) -> float:
    if scheme.rows < 16:
        return R * C + 4 * R
    if scheme.bits == 8 and scheme.group is None and not scheme.zero:
        return R * C + 2 * R
    planes = 2 if scheme.bits > 4 or scheme.grid == "mxfp4" else 1
    group = min(scheme.group or _CPU_GROUP, _CPU_GROUP)
    return planes * (R * C / 2 + 4 * R * C / group)


def kv_token_bytes(shape: Shape, scheme: Scheme, kind: str = "gpu") -> float:
    """Bytes of one token's keys and values in one layer; fp32 on a CPU, which rounds on top."""
    heads, D = 2 * shape.kv_heads, shape.head_dim
    if kind == "cpu" or scheme.kv == 16:
        return heads * D * (4 if kind == "cpu" else 2)
    return heads * (-(-D * scheme.kv // 8) + (2 if scheme.kv == 8 else 4))
