"""Reading Hugging Face folders: safetensors only, whole files only, one clear line otherwise.

What a checkpoint must hold follows from its shape (`model_tensors`, `head_tensors`), so that a
missing or foreign tensor is found from the files' headers, before anything is loaded.

A quantized folder, which `hspec_lab.quantize` writes, holds rounded weights instead: `config.json`
has an entry `hspec` with the format, and for each unit (matrices that read the same rows, stacked)
the kind and shape of its form, whose tensors are named `<unit>/<tensor>`.
"""

import hashlib
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from hspec_lab.model.shape import ModelShape, read_object, read_shape
from hspec_lab.quant.forms import Form, from_file

# matrices of a decoder layer that read the same rows are stored as one
UNITS = {
    "qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "o": ("self_attn.o_proj",),
    "gate_up": ("mlp.gate_proj", "mlp.up_proj"),
    "down": ("mlp.down_proj",),
}
_UNIT_OF = {name: unit for unit, names in UNITS.items() for name in names}
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
DTYPES = ("F64", "F32", "F16", "BF16")

Sizes = dict[str, tuple[int, ...]]


def layer_tensors(shape: ModelShape, prefix: str, input_norm: bool = True) -> Sizes:
    """Names and sizes of one decoder layer."""
    h, inner, D = shape.hidden, shape.inner, shape.head_dim
    q_out, kv_out = shape.heads * D, shape.kv_heads * D
    matrices = {
        "self_attn.q_proj": (q_out, h, shape.qkv_bias),
        "self_attn.k_proj": (kv_out, h, shape.qkv_bias),
        "self_attn.v_proj": (kv_out, h, shape.qkv_bias),
        "self_attn.o_proj": (h, q_out, shape.o_bias),
        "mlp.gate_proj": (inner, h, shape.mlp_bias),
        "mlp.up_proj": (inner, h, shape.mlp_bias),
        "mlp.down_proj": (h, inner, shape.mlp_bias),
    }
    sizes: Sizes = {"post_attention_layernorm.weight": (h,)}
    if input_norm:
        sizes["input_layernorm.weight"] = (h,)
    if shape.qk_norm:
        sizes |= {"self_attn.q_norm.weight": (D,), "self_attn.k_norm.weight": (D,)}
    for name, (out, into, has_bias) in matrices.items():
        sizes[f"{name}.weight"] = (out, into)
        if has_bias:
            sizes[f"{name}.bias"] = (out,)
    return {f"{prefix}.{name}": size for name, size in sizes.items()}


def model_tensors(shape: ModelShape) -> Sizes:
    """Names and sizes of a whole model."""
    sizes: Sizes = {
        "model.embed_tokens.weight": (shape.vocab, shape.hidden),
        "model.norm.weight": (shape.hidden,),
    }
    if not shape.tied:
        sizes["lm_head.weight"] = (shape.vocab, shape.hidden)
    for layer in range(shape.layers):
        sizes |= layer_tensors(shape, f"model.layers.{layer}")
    return sizes


def head_tensors(shape: ModelShape) -> Sizes:
    """Names and sizes of an EAGLE-2 head, less what is optional: first norm and `out.weight`."""
    h = shape.hidden
    return {"fc.weight": (h, 2 * h)} | layer_tensors(shape, "layers.0", input_norm=False)


def _marks(folder: Path) -> dict:
    """What `hspec quantize` wrote into a folder's config; empty where it did not make it."""
    path = Path(folder) / "config.json"
    marks = read_object(path).get("hspec") or {}
    if not isinstance(marks, dict):
        raise ValueError(f"{path}: hspec must be an object, got {marks!r}")
    return marks


def basis_of(folder: Path) -> str | None:
    """The basis a rotated model or head speaks in, twelve hex digits; None where none was rotated.

    Raises:
        ValueError: `config.json` cannot be read, or names a basis that is none.
    """
    basis = _marks(folder).get("basis")
    if basis is not None and not isinstance(basis, str):
        raise ValueError(f"{folder}/config.json: the basis must be a text, got {basis!r}")
    return basis


def made_from(folder: Path) -> Path | None:
    """The model that a quantized folder was made from; None of any other folder."""
    source = _marks(folder).get("source")
    return None if source is None else Path(source)


class Checkpoint:
    """A folder of weights, checked when opened and read tensor by tensor.

    Raises:
        ValueError: the folder, `config.json` or a weight file is missing, is truncated, or is a
            pickle.
    """

    def __init__(self, folder: Path):
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise ValueError(f"{folder}: no such folder; a model is a folder or zoo:name")
        self.shape: ModelShape = read_shape(self.folder)
        marks = _marks(self.folder)
        self.format: str | None = marks.get("format")
        self._forms: dict[str, dict] = marks.get("forms", {})
        if not isinstance(self._forms, dict):
            raise ValueError(
                f"{self.folder}/config.json: forms must be an object, got {self._forms!r}"
            )
        self._files, self._paths = {}, _weight_files(self.folder)
        for path in self._paths:
            try:
                file = safe_open(path, framework="pt")
            except (SafetensorError, OSError) as error:
                raise ValueError(f"{path}: truncated or not safetensors ({error})") from None
            for name in file.keys():
                self._files[name] = file

    def names(self) -> list[str]:
        """Every stored tensor."""
        return sorted(self._files)

    def __contains__(self, name: str) -> bool:
        return name in self._files

    def check(self, sizes: Sizes) -> None:
        """ValueError when a tensor is missing, of another size or not floating point."""
        rounded = self._rounded(sizes)
        for name, size in sizes.items():
            if name in rounded:
                continue
            if name not in self._files:
                raise ValueError(f"{self.folder}: tensor {name} is missing from the checkpoint")
            stored = self._files[name].get_slice(name)
            if tuple(stored.get_shape()) != size:
                raise ValueError(
                    f"{self.folder}: {name} is {stored.get_shape()}, config.json says {list(size)}"
                )
            if stored.get_dtype() not in DTYPES:
                raise ValueError(
                    f"{self.folder}: {name} is stored as {stored.get_dtype()}; "
                    f"weights are read from {', '.join(DTYPES)}"
                )
        # a bias that the config does not announce would change the text if it were left out
        announced = {"fc.bias", *sizes}
        for name in self._files:
            owner = name.removesuffix(".bias") + ".weight"
            if name.endswith(".bias") and owner in sizes and name not in announced:
                raise ValueError(f"{self.folder}: {name} is there, but config.json says no bias")

    def _rounded(self, sizes: Sizes) -> set[str]:
        """Weights that a form holds; ValueError when it is of another size."""
        found, heights = set(), {}
        for name, size in sizes.items():
            unit = unit_of(name)
            if unit in self._forms:
                found.add(name)
                heights[unit] = heights.get(unit, 0) + size[0]
        for unit, height in heights.items():
            if self._forms[unit]["shape"][0] != height:
                raise ValueError(
                    f"{self.folder}: {unit} has {self._forms[unit]['shape'][0]} outputs, "
                    f"config.json says {height}"
                )
        return found

    def form(self, unit: str) -> Form | None:
        """Rounded weights of a unit, `model.layers.0.qkv` or `lm_head`; None: they are plain."""
        known = self._forms.get(unit)
        if known is None:
            return None
        prefix = unit + "/"
        names = [name for name in self._files if name.startswith(prefix)]
        tensors = {name.removeprefix(prefix): self.tensor(name) for name in names}
        try:
            return from_file(known["kind"], tensors, tuple(known["shape"]))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{self.folder}: {unit} is damaged: {error}") from None

    def tensor(self, name: str) -> Tensor:
        """One tensor as stored; ValueError when it is missing."""
        if name not in self._files:
            raise ValueError(f"{self.folder}: tensor {name} is missing from the checkpoint")
        return self._files[name].get_tensor(name)

    def optional(self, name: str) -> Tensor | None:
        return self._files[name].get_tensor(name) if name in self._files else None

    def fingerprint(self) -> str:
        """Twelve hex digits that change when a weight file or the config is written again.

        The folder counts too: times of files are alike where an archive was unpacked.
        """
        facts = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in self._paths]
        config = (self.folder / "config.json").read_text(encoding="utf-8")
        content = repr((str(self.folder.resolve()), facts, config))
        return hashlib.sha256(content.encode()).hexdigest()[:12]


def unit_of(name: str) -> str:
    """The unit that a weight's name belongs to; its own name without `.weight` otherwise."""
    name = name.removesuffix(".weight")
    for matrix, unit in _UNIT_OF.items():
        if name.endswith("." + matrix):
            return f"{name.removesuffix(matrix)}{unit}"
    return name


def check_head(checkpoint: Checkpoint) -> None:
    """ValueError when a head lacks a tensor; a rotated one needs the matrix behind its layer."""
    sizes, h = head_tensors(checkpoint.shape), checkpoint.shape.hidden
    if basis_of(checkpoint.folder) or checkpoint.optional("out.weight") is not None:
        sizes |= {"out.weight": (h, h)}
    checkpoint.check(sizes)


def _weight_files(folder: Path) -> list[Path]:
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        where = read_object(index).get("weight_map")
        if not isinstance(where, dict) or not all(isinstance(v, str) for v in where.values()):
            raise ValueError(f"{index}: weight_map must map tensor names to file names")
        names = sorted(set(where.values()))
        if foreign := [name for name in names if Path(name).name != name]:
            raise ValueError(f"{index}: {foreign[0]!r} is not a file of this folder")
        paths = [folder / name for name in names]
        if missing := [path.name for path in paths if not path.is_file()]:
            raise ValueError(f"{folder}: {', '.join(missing)} is missing; the index names it")
        return paths
    if (folder / "model.safetensors").is_file():
        return [folder / "model.safetensors"]
    if pickles := sorted(p.name for pattern in PICKLES for p in folder.glob(pattern)):
        raise ValueError(
            f"{folder}: found {pickles[0]}, a pickle, which can run code when opened; "
            "convert it to safetensors"
        )
    raise ValueError(f"{folder}: no model.safetensors and no model.safetensors.index.json")
