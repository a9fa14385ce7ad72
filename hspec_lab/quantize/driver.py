"""From a reference such as `zoo:target@w4a16-g128+quarot+gptq` to a folder that holds it.

Layer by layer: read, transform, overhear what flows in, round, pass the calibration rows on through
the rounded layer, write.  A stopped run goes on behind the last layer written.
"""

import json
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from hspec_lab.config import split_model
from hspec_lab.model import Checkpoint
from hspec_lab.model.checkpoint import UNITS, model_tensors
from hspec_lab.model.shelf import made_folder, stacks_folder
from hspec_lab.model.transformer import check_format as check_shapes
from hspec_lab.pipeline import locate
from hspec_lab.quant.forms import Form, rounded
from hspec_lab.quantize import rotate
from hspec_lab.quantize.adadim import adadim
from hspec_lab.quantize.awq import awq, awq_layer
from hspec_lab.quantize.bitstack import block_errors, cut_to, order_blocks, stack_of
from hspec_lab.quantize.calibration import Inputs, output_error
from hspec_lab.quantize.evopress import EvoResult, Generation
from hspec_lab.quantize.finequant import finequant
from hspec_lab.quantize.fold import smooth_attention, smooth_layer, unit_weight
from hspec_lab.quantize.folder import LayerFiles, Unfinished
from hspec_lab.quantize.gptq import gptq
from hspec_lab.quantize.hqq import hqq
from hspec_lab.quantize.layers import Walk, read_layer
from hspec_lab.quantize.svdquant import svdquant
from hspec_lab.quantize.text import Calibration
from hspec_lab.quantize.widths import widths_by_evolution, widths_by_score
from hspec_lab.scheme import ALLOCATIONS, ROUNDERS, Format, Scheme
from hspec_lab.text import load_tokenizer

Progress = Callable[[int, int, str], None]
_STATE = "search.json"
_ERRORS = ".errors"  # behind a unit's name: relative output error with 1, 2, ... blocks


def quantize(
    reference: str,
    calibration: Calibration | None = None,
    *,
    head: Path | None = None,
    raise_damping: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Make the weights that a reference names, unless they are made already.

    Args:
        reference: `where@scheme+algorithm...`.
        calibration: what algorithms may read; None: held-out text of the zoo.
        head: an EAGLE head to rotate with the model; None: the one beside it, where there is one.
        raise_damping: whether GPTQ may damp more where a Hessian cannot be factored.
        progress: called with steps done, steps in all and a few words.

    Returns:
        The quantized folder.

    Raises:
        ValueError: nothing of the format needs making, a folder that is quantized already, a
            shape the format cannot take, too little text.
    """
    where, name = split_model(reference)
    format = replace(Format.parse(name), reference=False)
    calibration = calibration or Calibration()
    if not format.is_made:
        raise ValueError(f"{name} rounds to nearest when a model is loaded: nothing to make")
    source = Checkpoint(locate(where))
    if source.format is not None:
        raise ValueError(f"{where} is quantized already ({source.format}): name its source")
    source.check(model_tensors(source.shape))
    check_shapes(source.shape, replace(format, reference=True))
    folder = made_folder(source, format, calibration.name)
    if not folder.is_dir():
        with torch.inference_mode():
            _Job(source, format, calibration, folder, raise_damping, progress).run()
    if format.rotates:
        _rotate_head_of(source, folder, head)
    return folder


class _Job:
    """One model on its way into one folder."""

    def __init__(self, source, format, calibration, folder: Path, raise_damping, progress):
        self.source, self.format, self.calibration = source, format, calibration
        self.folder, self.raise_damping = folder, raise_damping
        self.shape, self.scheme = source.shape, format.scheme.weights
        allocation = [step for step in format.steps if step in ALLOCATIONS]
        self.allocation = allocation[0] if allocation else None
        self.steps = self.shape.layers * (2 if self.allocation else 1)
        self.done, self._progress = 0, progress
        self.seconds = time.monotonic()
        self.tokenizer = load_tokenizer(source.folder)
        self.windows = calibration.windows(self.tokenizer, self.shape.context)
        self.rotation = rotate.orthogonal(self.shape.hidden) if format.rotates else None

    def tell(self, words: str) -> None:
        if self._progress:
            self._progress(self.done, self.steps, words)

    def run(self) -> Path:
        self.tell(f"{self.source.folder.name}@{self.format}")
        half = Unfinished(self.folder)
        widths = self._widths(half)
        embedding, ends, forms = self._ends()
        walk = Walk(self.source, embedding, self.windows)
        if self.scheme.grid == "bitstack":
            errors = self._stacks(half, walk)
        else:
            errors = self._layers(half, walk, widths)
        half.put("ends", ends, forms)
        marks = {
            "format": str(self.format),
            "source": str(self.source.folder.resolve()),
            "calibration": self.calibration.name,
            "output_errors": errors,
            "seconds": round(time.monotonic() - self.seconds, 1),
        }
        if self.format.rotates:
            gain = self.source.tensor("model.norm.weight").float()
            marks |= {"basis": rotate.basis_id(self.rotation, gain), "untied": True}
        (half.path / _STATE).unlink(missing_ok=True)
        return half.finish(self.source.folder, marks)

    def _ends(self) -> tuple[Tensor, dict[str, Tensor], dict[str, Form]]:
        """The embedding to calibrate with, plain tensors, and the output layer's form."""
        source = self.source
        embedding, gain = (
            source.tensor("model.embed_tokens.weight"),
            source.tensor("model.norm.weight"),
        )
        head = None if self.shape.tied else source.tensor("lm_head.weight").float()
        if self.rotation is not None:
            parts = embedding.float(), head, gain.float(), self.rotation
            embedding, head, gain = rotate.rotate_ends(*parts)
        elif head is None:
            head = embedding.float()
        ends = {"model.embed_tokens.weight": embedding, "model.norm.weight": gain}
        return embedding, ends, {"lm_head": rounded(head, self.format.scheme.output)}

    # ---- one layer -------------------------------------------------------------------------------

    def _layers(self, half: Unfinished, walk: Walk, widths: dict[str, int]) -> dict[str, float]:
        errors = {}
        for index in range(self.shape.layers):
            prefix = f"model.layers.{index}."
            if half.has(f"layer-{index:05}"):
                kept, forms = half.get(f"layer-{index:05}")
                forms = {unit.removeprefix(prefix): form for unit, form in forms.items()}
                tensors = self._read(index) | {k.removeprefix(prefix): t for k, t in kept.items()}
            else:
                tensors, forms, lost = self._round_layer(index, walk, widths)
                errors |= {prefix + unit: error for unit, error in lost.items()}
                plain = {prefix + k: t for k, t in tensors.items() if not _in_unit(k)}
                half.put(f"layer-{index:05}", plain, {prefix + u: f for u, f in forms.items()})
            walk.advance(tensors, forms)
            self.done += 1
            self.tell(f"layer {index + 1} of {self.shape.layers}")
        return errors

    def _read(self, index: int) -> dict[str, Tensor]:
        tensors = read_layer(self.source, index)
        if self.rotation is None:
            return tensors
        return rotate.rotate_values(
            rotate.rotate_layer(tensors, self.shape, self.rotation), self.shape
        )

    def _round_layer(self, index: int, walk: Walk, widths: dict[str, int]):
        tensors = self._read(index)
        inputs, keys = walk.overhear(tensors)
        tensors, inputs = self._folded(tensors, inputs, keys)
        forms, errors = {}, {}
        for unit in UNITS:
            name = f"model.layers.{index}.{unit}"
            weight = unit_weight(tensors, unit)
            scheme = replace(self.scheme, bits=widths.get(name, self.scheme.bits))
            forms[unit] = self._rounder(name)(weight, inputs[unit], scheme)
            errors[unit] = output_error(weight, forms[unit].dequantized(), inputs[unit].hessian)
        return tensors, forms, errors

    def _folded(self, tensors, inputs: dict[str, Inputs], keys: Tensor):
        """Transforms that move scales between inputs, weights and keys."""
        for step in self.format.steps:
            scales = {}
            if step == "smooth":
                tensors, scales = smooth_layer(tensors, self.shape, inputs)
            elif step == "awqscale":
                tensors, scales = awq_layer(tensors, self.shape, inputs, self.scheme)
            elif step == "smoothattn":
                tensors = smooth_attention(tensors, self.shape, keys)
            elif step == "svdquant":  # outliers first move into the weights, which the branch takes
                tensors, scales = smooth_layer(tensors, self.shape, inputs)
            inputs = inputs | {unit: inputs[unit].scaled(s) for unit, s in scales.items()}
        return tensors, inputs

    def _rounder(self, name: str):
        step = next((step for step in self.format.steps if step in ROUNDERS), None)
        known = {
            "gptq": partial(gptq, name=name, raise_damping=self.raise_damping),
            "clip": awq,
            "hqq": hqq,
            "finequant": finequant,
            "adadim": adadim,
            "svdquant": _svdquant,
        }
        return known.get(step, lambda weight, inputs, scheme: rounded(weight, scheme))

    # ---- bits of each unit -----------------------------------------------------------------------

    def _widths(self, half: Unfinished) -> dict[str, int]:
        if self.allocation is None:
            return {}
        state = half.path / _STATE
        if self.allocation != "evopress":
            walk = Walk(self.source, self.source.tensor("model.embed_tokens.weight"), self.windows)
            return widths_by_score(
                self.allocation, self.scheme, self.source, walk, partial(self._searched, "layer")
            )
        start = _read_state(state) if state.is_file() else None

        def kept(result: EvoResult) -> None:
            state.write_text(json.dumps(asdict(result)))
            self._searched("generation", len(result.history))

        self.steps = self.shape.layers + 41
        found = widths_by_evolution(
            self.scheme, self.source, self.windows, start=start, progress=kept
        )
        self.done = self.steps - self.shape.layers
        return found.assignment

    def _searched(self, what: str, n: int) -> None:
        self.done = n
        self.tell(f"{self.allocation}, {what} {n}")

    # ---- stacks ----------------------------------------------------------------------------------

    def _stacks(self, half: Unfinished, walk: Walk) -> dict[str, float]:
        """Take every unit apart, unless that was done for another size; keep what fits."""
        whole = LayerFiles(stacks_folder(self.source, self.calibration.name))
        stacks, errors = {}, {}
        for index in range(self.shape.layers):
            if not whole.has(f"layer-{index:05}"):
                self._take_apart(index, whole, walk)
            tensors, forms = whole.get(f"layer-{index:05}")
            errors |= {k.removesuffix(_ERRORS): t.tolist() for k, t in tensors.items()}
            stacks |= forms
            walk.advance(self._read(index))
            self.done += 1
            self.tell(f"layer {index + 1} of {self.shape.layers}")
        kept = cut_to(stacks, order_blocks(stacks, errors), self.scheme.megabytes * 1e6)
        for index in range(self.shape.layers):
            prefix = f"model.layers.{index}."
            plain = {prefix + k: t for k, t in self._read(index).items() if not _in_unit(k)}
            forms = {n: stacks[n].cut(kept[n]) for n in stacks if n.startswith(prefix)}
            half.put(f"layer-{index:05}", plain, forms)
        return {name: errors[name][kept[name] - 1] for name in stacks}

    def _take_apart(self, index: int, whole: LayerFiles, walk: Walk) -> None:
        tensors = self._read(index)
        inputs, _ = walk.overhear(tensors)
        stacks, errors = {}, {}
        for unit in UNITS:
            name, weight = f"model.layers.{index}.{unit}", unit_weight(tensors, unit)
            rank = min(16, max(2, min(weight.shape) // 48))
            stacks[name] = stack_of(weight, inputs[unit], rank=rank)
            found = block_errors(weight, stacks[name], inputs[unit])
            errors[name + _ERRORS] = torch.tensor(found, dtype=torch.float64)
        whole.put(f"layer-{index:05}", errors, stacks)


def _svdquant(weight: Tensor, inputs: Inputs, scheme: Scheme) -> Form:
    """With the published rank of 32 where matrices are large beside it, less where not."""
    return svdquant(weight, inputs, scheme, rank=min(32, max(1, min(weight.shape) // 32)))


def _in_unit(name: str) -> bool:
    """Whether a layer's tensor is a weight that some form holds."""
    return any(name == f"{matrix}.weight" for names in UNITS.values() for matrix in names)


def _read_state(path: Path) -> EvoResult:
    found = json.loads(path.read_text())
    history = tuple(Generation(**entry) for entry in found.pop("history"))
    return EvoResult(**found, history=history)


def _rotate_head_of(source: Checkpoint, folder: Path, head: Path | None) -> None:
    """Write the rotated head of a rotated model beside it, if there is one to rotate."""
    beside = source.folder.with_name(source.folder.name + "-eagle2")
    head = head or (beside if beside.is_dir() else None)
    final = folder.with_name(folder.name + "-eagle2")
    if head is None or final.is_dir():
        return
    checkpoint = Checkpoint(head)
    tensors = {name: checkpoint.tensor(name).float() for name in checkpoint.names()}
    gain = source.tensor("model.norm.weight").float()
    Q = rotate.orthogonal(source.shape.hidden)
    half = Unfinished(final)
    rotated = {name: t.contiguous() for name, t in rotate.rotate_head(tensors, gain, Q).items()}
    half.put("model", rotated, {})
    half.finish(head, {"basis": rotate.basis_id(Q, gain), "source": str(head.resolve())})
