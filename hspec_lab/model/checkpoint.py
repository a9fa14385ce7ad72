"""Reading Hugging Face folders: safetensors only, whole files only, one clear line otherwise."""

import json
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from hspec_lab.model.shape import ModelShape, read_shape

PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


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
        self._files = {}
        for path in _weight_files(self.folder):
            try:
                file = safe_open(path, framework="pt")
            except (SafetensorError, OSError) as error:
                raise ValueError(f"{path}: truncated or not safetensors ({error})") from None
            for name in file.keys():
                self._files[name] = file

    def __contains__(self, name: str) -> bool:
        return name in self._files

    def tensor(self, name: str, shape: tuple[int, ...] | None = None) -> Tensor:
        """One tensor as stored; ValueError when it is missing or of another shape."""
        if name not in self._files:
            raise ValueError(f"{self.folder}: tensor {name} is missing from the checkpoint")
        tensor = self._files[name].get_tensor(name)
        if shape is not None and tensor.shape != shape:
            raise ValueError(
                f"{self.folder}: {name} is {list(tensor.shape)}, config.json says {list(shape)}"
            )
        return tensor

    def optional(self, name: str) -> Tensor | None:
        return self._files[name].get_tensor(name) if name in self._files else None


def _weight_files(folder: Path) -> list[Path]:
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
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
