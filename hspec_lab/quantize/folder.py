"""Writing a quantized folder: layer by layer under another name, then renamed whole.

    config.json                    the model's own; under `hspec` format, forms, how it was made
    layer-00000.safetensors ...    norms and biases by their names, forms as `<unit>/<tensor>`
    ends.safetensors               embedding, last norm, output layer
    model.safetensors.index.json   which tensor lies in which file

A layer's file also says, in its own metadata, which forms it holds, so that a stopped run goes on
behind the last layer that was written.
"""

import json
import os
import shutil
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from hspec_lab.quant.forms import Form, from_file

_COPIED = ("tokenizer*", "special_tokens_map.json", "generation_config.json", "vocab*", "merges*")
_NOTE = "note-{}.json"


class LayerFiles:
    """A folder of files of tensors and forms."""

    def __init__(self, path: Path):
        self.path = path
        self.path.mkdir(parents=True, exist_ok=True)

    def has(self, name: str) -> bool:
        return (self.path / f"{name}.safetensors").is_file()

    def put(
        self,
        name: str,
        tensors: dict[str, Tensor],
        forms: dict[str, Form],
        errors: dict[str, float] | None = None,
    ) -> None:
        """Write one file, whole or not at all.

        Args:
            tensors: by their full names.
            forms: by unit, full names.
            errors: of the units' outputs, relative, where they are known.
        """
        kinds = {unit: {"kind": f.kind, "shape": list(f.shape)} for unit, f in forms.items()}
        for unit, error in (errors or {}).items():
            kinds[unit]["error"] = error
        for unit, form in forms.items():
            tensors = tensors | {f"{unit}/{key}": t for key, t in form.tensors().items()}
        tensors = {key: tensor.contiguous() for key, tensor in tensors.items()}
        path = self.path / f"{name}.safetensors"
        half = path.with_suffix(f".{os.getpid()}.tmp")
        try:
            save_file(tensors, half, metadata={"forms": json.dumps(kinds)})
            os.replace(half, path)
        except SafetensorError as error:
            raise OSError(f"{path}: cannot be written ({error})") from None

    def get(self, name: str) -> tuple[dict[str, Tensor], dict[str, Form]]:
        """What `put` wrote."""
        with safe_open(self.path / f"{name}.safetensors", framework="pt") as file:
            kinds = json.loads(file.metadata()["forms"])
            found = {key: file.get_tensor(key) for key in file.keys()}
        forms = {}
        for unit, known in kinds.items():
            own = {k.partition("/")[2]: t for k, t in found.items() if k.startswith(unit + "/")}
            forms[unit] = from_file(known["kind"], own, tuple(known["shape"]))
        return {key: tensor for key, tensor in found.items() if "/" not in key}, forms


class Unfinished(LayerFiles):
    """A model's folder that is being written beside the place where it will lie."""

    def __init__(self, final: Path):
        super().__init__(final.with_name(f".unfinished-{final.name}"))
        self.final = final

    def note(self, name: str, content) -> None:
        """Keep something for a run that goes on here, as JSON, whole or not at all."""
        path = self.path / _NOTE.format(name)
        half = path.with_suffix(".tmp")
        half.write_text(json.dumps(content), encoding="utf-8")
        os.replace(half, path)

    def noted(self, name: str):
        """What `note` kept; None where nothing was."""
        path = self.path / _NOTE.format(name)
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None

    def finish(self, source: Path, marks: dict) -> Path:
        """Add what makes it a model's folder and give it its name.

        Args:
            source: the model's own folder.
            marks: what goes under `hspec` beside the forms; `untied` removes the tie to the
                embedding.
        """
        for half in self.path.glob("*.tmp"):  # of a process that was stopped
            half.unlink(missing_ok=True)
        weight_map, forms = {}, {}
        for path in sorted(self.path.glob("*.safetensors")):
            with safe_open(path, framework="pt") as file:
                forms |= json.loads(file.metadata()["forms"])
                weight_map |= dict.fromkeys(file.keys(), path.name)
        config = json.loads((source / "config.json").read_text(encoding="utf-8"))
        if marks.pop("untied", False):
            config["tie_word_embeddings"] = False
        errors = {unit: known.pop("error") for unit, known in forms.items() if "error" in known}
        config["hspec"] = marks | ({"output_errors": errors} if errors else {}) | {"forms": forms}
        for pattern in _COPIED:
            for path in source.glob(pattern):
                if path.is_file():
                    shutil.copy(path, self.path / path.name)
        index = {"weight_map": weight_map}
        for name, content in (("config.json", config), ("model.safetensors.index.json", index)):
            (self.path / name).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        for path in self.path.glob(_NOTE.format("*")):
            path.unlink()
        if self.final.exists():  # somebody else made the same
            shutil.rmtree(self.path)
        else:
            self.path.rename(self.final)
        return self.final
