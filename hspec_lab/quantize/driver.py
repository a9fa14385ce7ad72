"""From a reference such as `zoo:target@w4a16-g128+quarot+gptq` to a folder that holds it.

Layer by layer: read, transform, overhear what flows in, round, pass the calibration rows on through
the rounded layer, write.  A stopped run goes on behind the last layer written.
"""

import time
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from hspec_lab.config import split_model
from hspec_lab.formats import ALLOCATIONS, ROUNDERS, Format
from hspec_lab.model import Checkpoint
from hspec_lab.model.checkpoint import UNITS
from hspec_lab.model.shelf import made_folder, stacks_folder
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
from hspec_lab.quantize.heads import head_to_rotate, write_rotated
from hspec_lab.quantize.hqq import hqq
from hspec_lab.quantize.layers import Walk, read_finite, read_layer
from hspec_lab.quantize.possible import BLOCKS, check_possible, rank_of
from hspec_lab.quantize.svdquant import svdquant
from hspec_lab.quantize.text import Calibration
from hspec_lab.quantize.widths import widths_by_evolution, widths_by_score
from hspec_lab.scheme import Scheme
from hspec_lab.text import load_tokenizer

Progress = Callable[[int, int, str], None]
# what a run that goes on wants to know
_SEARCH, _SECONDS = "search", "seconds"
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
            shape the format cannot take, too little text, a head of another model, a weight or
            row that is not finite.
    """
    where, name = split_model(reference)
    format = replace(Format.parse(name), reference=False)
    calibration = calibration or Calibration()
    if not format.is_made:
        raise ValueError(f"{name} rounds to nearest when a model is loaded: nothing to make")
    source = Checkpoint(locate(where))
    check_possible(source, format)
    if head is not None and not format.rotates:
        raise ValueError(f"{format} rotates nothing: a head fits it as it is, leave {head} out")
    drafts = head_to_rotate(source, head) if format.rotates else None
    folder = made_folder(source, format, calibration.name)
    if not folder.is_dir():
        with torch.inference_mode():
            job = _Job(source, format, calibration, folder, raise_damping, progress)
            try:
                job.run()
            except OSError:
                if not folder.is_dir():  # else another process was faster and took the files along
                    raise
    if drafts is not None:
        write_rotated(drafts, source, folder)
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
        self.begun = time.monotonic()
        self.tokenizer = load_tokenizer(source.folder)
        self.windows = calibration.windows(self.tokenizer, self.shape.context)
        self.rotation = rotate.orthogonal(self.shape.hidden) if format.rotates else None

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.begun

    def tell(self, words: str) -> None:
        if self._progress:
            self._progress(self.done, self.steps, words)

    def run(self) -> Path:
        self.tell(f"{self.source.folder.name}@{self.format}")
        half = Unfinished(self.folder)
        # a run that goes on counts what the one before it took
        self.begun -= half.noted(_SECONDS) or 0.0
        embedding, ends, forms = self._ends()
        widths = self._widths(half)
        walk = Walk(self.source, embedding, self.windows)
        if self.scheme.grid == "bitstack":
            self._stacks(half, walk)
        else:
            self._layers(half, walk, widths)
        half.put("ends", ends, forms)
        marks = {
            "format": str(self.format),
            "source": str(self.source.folder.resolve()),
            "calibration": self.calibration.name,
            "seconds": round(self.seconds, 1),
        }
        if self.format.rotates:
            gain = self.source.tensor("model.norm.weight").float()
            marks |= {"basis": rotate.basis_id(self.rotation, gain), "untied": True}
        return half.finish(self.source.folder, marks)

    def _ends(self) -> tuple[Tensor, dict[str, Tensor], dict[str, Form]]:
        """The embedding to calibrate with, plain tensors, and the output layer's form."""
        source, names = self.source, ("model.embed_tokens.weight", "model.norm.weight")
        head = None if self.shape.tied else read_finite(source, "lm_head.weight")
        embedding, gain = (read_finite(source, name) for name in names)
        if self.rotation is not None:
            embedding, head, gain = rotate.rotate_ends(embedding, head, gain, self.rotation)
        else:
            # a file holds no tensor twice
            head = embedding.clone() if head is None else head
            embedding, gain = (source.tensor(name) for name in names)
        ends = {"model.embed_tokens.weight": embedding, "model.norm.weight": gain}
        return embedding, ends, {"lm_head": rounded(head, self.format.scheme.output)}

    # ---- one layer -------------------------------------------------------------------------------

    def _layers(self, half: Unfinished, walk: Walk, widths: dict[str, int]) -> None:
        for index in range(self.shape.layers):
            prefix = f"model.layers.{index}."
            if half.has(f"layer-{index:05}"):
                kept, forms = half.get(f"layer-{index:05}")
                forms = {unit.removeprefix(prefix): form for unit, form in forms.items()}
                tensors = self._read(index) | {k.removeprefix(prefix): t for k, t in kept.items()}
            else:
                tensors, forms, errors = self._round_layer(index, walk, widths)
                named = ({prefix + k: v for k, v in by.items()} for by in (forms, errors))
                half.put(f"layer-{index:05}", _plain(tensors, prefix), *named)
                half.note(_SECONDS, self.seconds)
            walk.advance(tensors, forms)
            self.done += 1
            self.tell(f"layer {index + 1} of {self.shape.layers}")

    def _read(self, index: int) -> dict[str, Tensor]:
        # opened anew: a mapped file's pages stay in memory as long as it is open
        tensors = read_layer(Checkpoint(self.source.folder), index)
        if self.rotation is None:
            return tensors
        return rotate.rotate_values(
            rotate.rotate_layer(tensors, self.shape, self.rotation), self.shape
        )

    def _round_layer(self, index: int, walk: Walk, widths: dict[str, int]):
        tensors, inputs = self._transformed(index, walk)
        forms, errors = {}, {}
        for unit in UNITS:
            name = f"model.layers.{index}.{unit}"
            weight = unit_weight(tensors, unit)
            scheme = replace(self.scheme, bits=widths.get(name, self.scheme.bits))
            seen = inputs.pop(unit)  # the widest of them is larger than many a layer
            forms[unit] = self._rounder(name)(weight, seen, scheme)
            errors[unit] = output_error(weight, forms[unit].dequantized(), seen.hessian)
        return tensors, forms, errors

    def _transformed(self, index: int, walk: Walk) -> tuple[dict[str, Tensor], dict[str, Inputs]]:
        """A layer as it will be rounded, and what flows into its units then."""
        tensors = self._read(index)
        inputs, keys = walk.overhear(tensors)
        for unit, seen in inputs.items():
            if not seen.hessian.isfinite().all():
                raise ValueError(
                    f"model.layers.{index}.{unit}: calibration rows overflow, their squares are "
                    "not finite: look at this layer and at those before it"
                )
        return self._folded(tensors, inputs, keys)

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
        if self.allocation != "evopress":
            walk = Walk(self.source, self.source.tensor("model.embed_tokens.weight"), self.windows)
            return widths_by_score(
                self.allocation, self.scheme, self.source, walk, partial(self._searched, "layer")
            )
        start = _search_of(half.noted(_SEARCH))

        def kept(result: EvoResult) -> None:
            half.note(_SEARCH, asdict(result))
            half.note(_SECONDS, self.seconds)
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

    def _stacks(self, half: Unfinished, walk: Walk) -> None:
        """Take every unit apart, unless that was done for another size; keep what fits."""
        steps, text = self.format.steps, self.calibration.name
        whole = LayerFiles(stacks_folder(self.source, steps, text))
        stacks, errors, plain = {}, {}, {}
        for index in range(self.shape.layers):
            if not whole.has(f"layer-{index:05}"):
                self._take_apart(index, whole, walk)
            tensors, forms = whole.get(f"layer-{index:05}")
            found = {k: t for k, t in tensors.items() if k.endswith(_ERRORS)}
            errors |= {k.removesuffix(_ERRORS): t.tolist() for k, t in found.items()}
            plain[index] = {k: t for k, t in tensors.items() if k not in found}
            stacks |= forms
            # transforms keep what a layer does
            walk.advance(self._read(index))
            self.done += 1
            self.tell(f"layer {index + 1} of {self.shape.layers}")
        kept = cut_to(stacks, order_blocks(stacks, errors), self.scheme.megabytes * 1e6)
        for index in range(self.shape.layers):
            names = [f"model.layers.{index}.{unit}" for unit in UNITS]
            forms = {name: stacks[name].cut(kept[name]) for name in names}
            lost = {name: errors[name][kept[name] - 1] for name in names}
            half.put(f"layer-{index:05}", plain[index], forms, lost)

    def _take_apart(self, index: int, whole: LayerFiles, walk: Walk) -> None:
        tensors, inputs = self._transformed(index, walk)
        stacks, errors = {}, {}
        for unit in UNITS:
            name, weight = f"model.layers.{index}.{unit}", unit_weight(tensors, unit)
            rank = rank_of(*weight.shape)
            stacks[name] = stack_of(weight, inputs[unit], blocks=BLOCKS, rank=rank)
            found = block_errors(weight, stacks[name], inputs[unit])
            errors[name + _ERRORS] = torch.tensor(found, dtype=torch.float64)
        plain = _plain(tensors, f"model.layers.{index}.")
        whole.put(f"layer-{index:05}", plain | errors, stacks)


def _svdquant(weight: Tensor, inputs: Inputs, scheme: Scheme) -> Form:
    """With the published rank of 32 where matrices are large beside it, less where not."""
    return svdquant(weight, inputs, scheme, rank=min(32, max(1, min(weight.shape) // 32)))


def _plain(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """A layer's tensors that no form holds, by their full names."""
    held = {f"{matrix}.weight" for names in UNITS.values() for matrix in names}
    return {prefix + name: tensor for name, tensor in tensors.items() if name not in held}


def _search_of(found: dict | None) -> EvoResult | None:
    """What `asdict` made of a search's result."""
    if found is None:
        return None
    history = tuple(Generation(**entry) for entry in found.pop("history"))
    return EvoResult(**found, history=history)
