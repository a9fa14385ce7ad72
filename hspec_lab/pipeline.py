"""From a config to levels that can decode: resolve, check, load, nest.

Everything a person can get wrong is checked before any weight is quantized, and a model that two
levels or two configs share is loaded once.
"""

import hashlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from tokenizers import Tokenizer

from hspec_lab import zoo
from hspec_lab.config import (
    Chain,
    Config,
    Drafting,
    Eagle2,
    HeadDraft,
    Refine,
    Static,
    below,
    check_format,
    split_model,
)
from hspec_lab.draft import Eagle2Drafter, RefineDrafter
from hspec_lab.draft.static import StaticDrafter
from hspec_lab.formats import Format
from hspec_lab.model import Checkpoint, EagleHead, Transformer
from hspec_lab.model.checkpoint import basis_of, check_head, made_from, model_tensors
from hspec_lab.model.eagle import check_head_fits
from hspec_lab.model.fused import FusedHead, FusedTransformer
from hspec_lab.model.shape import ROPE_SLACK, ModelShape
from hspec_lab.model.shelf import locate_made
from hspec_lab.model.transformer import check_format as check_shapes
from hspec_lab.model.transformer import check_made
from hspec_lab.model.watched import watched, watched_head
from hspec_lab.quant.device import check_device_format, check_device_shape
from hspec_lab.runtime import DeviceChain, DeviceEagle2, DeviceLevel, DeviceRefine, Dice, Memory
from hspec_lab.runtime.stage import bucket_of
from hspec_lab.sample import SeededChoose
from hspec_lab.text import check_same_vocabulary, load_tokenizer, n_entries
from hspec_lab.trace import NO_RECORDER
from hspec_lab.verify import Verifier


def locate(where: str) -> Path:
    """The folder behind `zoo:name` or a path."""
    return zoo.folder(where[4:]) if where.startswith("zoo:") else Path(where).expanduser()


def folder_of(model: str) -> Path:
    """The folder that holds a model in its format: the model's own, or a quantized one.

    Raises:
        ValueError: an algorithm chose the weights and they are not made yet.
    """
    where, format = split_model(model)
    return locate_made(locate(where), Format.parse(format))


def head_of(draft: HeadDraft, model: str, on_kernels: bool = False) -> tuple[Path, str]:
    """Folder and format of a draft head; unnamed, it lies beside its model as `<name>-eagle2`.

    Unnamed, its weights are as they are in its files: fp32, or 16 bits where kernels run them.
    """
    if draft.head:
        where, format = split_model(draft.head)
        return locate(where), format
    folder = folder_of(model).resolve()
    beside = folder.with_name(folder.name + "-eagle2")
    if not beside.is_dir() and (source := made_from(folder)) is not None:
        beside = source.with_name(source.name + "-eagle2")
    return beside, "w16a16" if on_kernels else "fp32"


def levels(config: Config) -> list[str]:
    """The model references of a config, target first."""
    found, draft = [config.target], config.draft
    while isinstance(draft, Chain | Refine):
        found.append(draft.model)
        draft = draft.draft if isinstance(draft, Refine) else None
    return found


def reach(draft: Drafting | None) -> int:
    """How many positions past the text a drafter may look."""
    if draft is None:
        return 1
    if isinstance(draft, HeadDraft):
        return draft.depth + 1
    if isinstance(draft, Chain):
        return draft.draft_len + 1
    return draft.at_least + reach(draft.draft) + 1


def tree_rows(draft: Drafting | None) -> int:
    """Cache rows a level needs for the proposals of its drafter."""
    if draft is None:
        return 2
    if isinstance(draft, HeadDraft):
        return draft.tree_size
    narrow = draft.tree_size if isinstance(draft, Refine) else None
    return max(reach(draft), narrow or 0)


class Models:
    """Loaded models, by reference; loading the same one again costs nothing.

    Args:
        kernels: whether models run on Triton kernels; None: on a CUDA device, and only there.
            Interpreted (TRITON_INTERPRET=1) they also run on a CPU, slowly, with `dtype` fp16.
        dtype: of activations and caches on kernels.
    """

    def __init__(self, *, kernels: bool | None = None, dtype: torch.dtype = torch.bfloat16):
        self._loaded: dict[tuple, object] = {}
        self._kernels, self._dtype = kernels, dtype

    def on_kernels(self, device: str) -> bool:
        return device != "cpu" if self._kernels is None else self._kernels

    def transformer(self, model: str, row_invariant: bool, device: str) -> Transformer:
        folder, format = folder_of(model), split_model(model)[1]
        key = (str(folder), format, row_invariant, device)
        if key not in self._loaded:
            make, options = Transformer, {}
            if self.on_kernels(device):
                make, options = FusedTransformer, {"dtype": self._dtype}
            self._loaded[key] = make(
                Checkpoint(folder),
                format,
                row_invariant=row_invariant,
                device=device,
                n_known=n_entries(load_tokenizer(folder)),
                **options,
            )
        return self._loaded[key]

    def head(self, draft: HeadDraft, model: str, over: Transformer) -> EagleHead:
        on_kernels = isinstance(over, FusedTransformer)
        folder, format = head_of(draft, model, on_kernels)
        key = (str(folder), format, id(over))
        if key not in self._loaded:
            make = FusedHead if on_kernels else EagleHead
            self._loaded[key] = make(Checkpoint(folder), format, over)
        return self._loaded[key]


def check(config: Config) -> None:
    """Find what is wrong with a config before any weight is read; ValueError says what."""
    check_sources(config)
    check_folders(config)


def check_folders(config: Config) -> None:
    """The rest of `check`: what the folders that hold the config's formats say."""
    for model in levels(config):
        if (folder := folder_of(model)) != locate(split_model(model)[0]):
            _check_level(model, folder, config.device)
    if (bottom := _bottom(config)) is not None:
        draft, model = bottom
        head = Checkpoint(head_of(draft, model)[0])
        check_head(head)
        check_head_fits(head, Checkpoint(folder_of(model)))
        if config.device != "cpu":
            _check_kernels_head(draft, head.shape, model, config.device)


def check_sources(config: Config) -> None:
    """As much of `check` as can be said before the config's quantized folders exist."""
    if config.device != "cpu":
        _check_device(config.device)
        _check_not_static(config.draft, config.device)
        _check_narrow_trees(config)
    folders = [locate(split_model(model)[0]) for model in levels(config)]
    for model, folder in zip(levels(config), folders, strict=True):
        _check_level(model, folder, config.device)
    for folder in folders[1:]:
        check_same_vocabulary(folders[0], folder)
    if reach(config.draft) > ROPE_SLACK:
        raise ValueError(
            f"the draft reaches {reach(config.draft)} tokens ahead, beyond the cache's "
            f"{ROPE_SLACK} spare positions: lower draft_len, at_least or depth"
        )
    if (bottom := _bottom(config)) is not None and bottom[0].head:
        _check_named_head(*bottom)


def _check_named_head(draft: HeadDraft, model: str) -> None:
    """A head that is there and fits its model's sizes; its basis too, where that is known."""
    where, name = split_model(model)
    head, source = Checkpoint(head_of(draft, model)[0]), Checkpoint(locate(where))
    check_head(head)
    rotates = Format.parse(name).rotates and source.format is None
    if not rotates:
        check_head_fits(head, source)
    elif basis_of(head.folder) is None:
        raise ValueError(
            f"{head.folder}: this head is not rotated, but {model} is: leave the head out, or make "
            f"it with `hspec quantize {model} --head {head.folder}`"
        )


def _check_level(model: str, folder: Path, device: str) -> None:
    checkpoint = Checkpoint(folder)
    shape, format = checkpoint.shape, split_model(model)[1]
    checkpoint.check(model_tensors(shape))
    check_made(checkpoint, Format.parse(format))
    check_storable(shape, format, device)
    n = n_entries(load_tokenizer(folder))
    if n > shape.vocab:
        raise ValueError(f"{folder}: the tokenizer has {n} entries, the model {shape.vocab}")


def check_storable(shape: ModelShape, format: str, device: str) -> None:
    """ValueError when a model of this shape cannot be stored in `format` on `device`."""
    parsed = Format.parse(check_format(format, device))
    if device == "cpu":
        check_shapes(shape, parsed)
        return
    check_device_format(str(parsed.scheme.weights), device)
    check_shapes(shape, parsed, check_device_shape)


def _check_kernels_head(draft: Eagle2, shape: ModelShape, model: str, device: str) -> None:
    """What the kernels that grow trees can hold."""
    from hspec_kernels.head_topk import MAX_K
    from hspec_kernels.tree_rerank import MAX_NODES

    check_storable(shape, head_of(draft, model, on_kernels=True)[1], device)
    for name, most in (("top_k", MAX_K), ("tree_size", MAX_NODES)):
        if getattr(draft, name) > most:
            raise ValueError(f"Eagle2: {name} is at most {most} on {device}, got {draft!r}")
    # a level runs together with those above it
    if (draft.depth - 1) * draft.top_k > _SPARE_ROWS:
        raise ValueError(
            f"Eagle2: (depth - 1) * top_k is at most {_SPARE_ROWS} on {device}, got {draft!r}"
        )


def _check_not_static(draft: Drafting | None, device: str) -> None:
    while isinstance(draft, Refine):
        draft = draft.draft
    if isinstance(draft, Static):
        raise ValueError(
            f"Static: kernels ({device}) grow dynamic trees only: use Eagle2, or a CPU without them"
        )


def _check_narrow_trees(config: Config) -> None:
    from hspec_kernels.narrow_tree import MAX_BUCKET

    for draft in config.refines:
        longest = draft.at_least + reach(draft.draft)
        if draft.tree_size and bucket_of(max(draft.tree_size, longest)) > MAX_BUCKET:
            raise ValueError(
                f"Refine: a narrow tree on {config.device} has at most {MAX_BUCKET} nodes, got "
                f"tree_size {draft.tree_size} and up to {longest} in a path"
            )


def check_prompts(config: Config, prompts: Sequence[list[int]]) -> None:
    """ValueError when a prompt, as token ids, is empty or does not fit a level's context."""
    sources = {model: locate(split_model(model)[0]) for model in levels(config)}
    contexts = {model: Checkpoint(folder).shape.context for model, folder in sources.items()}
    for n_tokens in map(len, prompts):
        if n_tokens == 0:
            raise ValueError("the prompt is empty; decoding needs at least one token")
        for model, context in contexts.items():
            if n_tokens + config.max_new_tokens > context:
                raise ValueError(
                    f"a prompt of {n_tokens} tokens and {config.max_new_tokens} new ones exceed "
                    f"the context of {model}, {context} tokens: shorten one of them"
                )


def _check_device(device: str) -> None:
    try:
        kind = torch.device(device).type
    except RuntimeError:
        kind = ""
    if kind != "cuda":
        raise ValueError(f"device {device!r} is not supported; supported: cpu, cuda")
    if not torch.cuda.is_available():
        raise ValueError(f"device {device!r}: no CUDA device here; use device='cpu'")


def _bottom(config: Config) -> tuple[HeadDraft, str] | None:
    """The draft head at the bottom of the hierarchy and the model it drafts for."""
    draft, model = config.draft, config.target
    while isinstance(draft, Refine):
        draft, model = draft.draft, draft.model
    return (draft, model) if isinstance(draft, HeadDraft) else None


def fingerprint(config: Config) -> str:
    """Twelve hex digits that change when a weight file of any level is written again."""
    folders = [folder_of(model) for model in levels(config)]
    if (bottom := _bottom(config)) is not None:
        folders.append(head_of(*bottom)[0])
    facts = "".join(Checkpoint(folder).fingerprint() for folder in folders)
    return hashlib.sha256(facts.encode()).hexdigest()[:12]


def randomness(config: Config, models: Models) -> Dice | SeededChoose:
    """What a config's levels draw from; `begin(prompt)` starts the stream of one prompt."""
    if models.on_kernels(config.device):
        return Dice(config.seed, config.device)
    return SeededChoose(config.seed)


def build(
    config: Config,
    models: Models,
    n_tokens: int,
    *,
    choose=None,
    recorder=NO_RECORDER,
    modules: bool = False,
) -> Verifier | DeviceLevel:
    """The target's level with all its drafters behind it.

    Args:
        n_tokens: longest prompt to be decoded, in tokens.
        choose: from `randomness` (so when None); or any function that draws an index from
            probabilities, with which rounds are driven by the host, on kernels too.
        recorder: is told about every phase of every level.
        modules: whether it is told about attention, mlp and lm_head inside the phases, too.
    """
    choose = choose or randomness(config, models)
    if isinstance(choose, Dice):
        _check_not_static(config.draft, config.device)
        if modules:
            raise ValueError(
                f"modules are timed where layers run one by one; on kernels ({config.device}) a "
                "stage is one CUDA graph: record its kernels instead"
            )
        return _DeviceBuilder(config, models, n_tokens, choose, recorder).target()
    watch = partial(watched, recorder=recorder) if modules else None
    return _Builder(config, models, n_tokens, choose, recorder, watch).target()


class _Builder:
    def __init__(self, config: Config, models: Models, n_tokens: int, choose, recorder, watch):
        self.config, self.models, self.choose, self.recorder = config, models, choose, recorder
        self.watch = watch
        # the text never outgrows this, however far the lowest level runs ahead
        self.text_rows = n_tokens + config.max_new_tokens + reach(config.draft)

    def target(self) -> Verifier:
        config = self.config
        return self.verifier(config.target, config.draft, "target", "verify_target")

    def verifier(
        self, model: str, draft: Drafting | None, level: str, phase: str, sampling: bool = True
    ) -> Verifier:
        config = self.config
        transformer = self.models.transformer(model, config.row_invariant, config.device)
        return Verifier(
            self.watch(transformer) if self.watch else transformer,
            self.drafter(draft, model, transformer, level),
            level=level,
            phase=phase,
            capacity=self.text_rows + tree_rows(draft),
            temperature=config.temperature,
            choose=self.choose,
            sampling=sampling,
            recorder=self.recorder,
        )

    def drafter(self, draft: Drafting | None, model: str, over: Transformer, above: str):
        if draft is None:
            return None
        if isinstance(draft, HeadDraft):
            head = self.models.head(draft, model, over)
            if self.watch:
                head = watched_head(head, self.watch(over), self.recorder)
        if isinstance(draft, Static):
            return StaticDrafter(head, draft, capacity=self.text_rows, recorder=self.recorder)
        if isinstance(draft, Eagle2):
            return Eagle2Drafter(
                head,
                tree_size=draft.tree_size,
                depth=draft.depth,
                top_k=draft.top_k,
                capacity=self.text_rows,
                recorder=self.recorder,
            )
        level = below(above)
        if isinstance(draft, Chain):
            return RefineDrafter(
                self.verifier(draft.model, None, level, "draft"), at_least=draft.draft_len
            )
        inner = self.verifier(
            draft.model, draft.draft, level, "verify_intermediate", draft.sampling == "sample"
        )
        return RefineDrafter(inner, at_least=draft.at_least, tree_size=draft.tree_size)


# rows behind the longest text of any device-held decoder, so that caches of all methods are equally
# long: in row-invariant mode a row's bits depend on that
_SPARE_ROWS = 512


class _DeviceBuilder:
    """The same levels on kernels, their rounds in device memory; see `runtime`."""

    def __init__(self, config: Config, models: Models, n_tokens: int, dice: Dice, recorder):
        self.config, self.models, self.recorder = config, models, recorder
        spare = max(_SPARE_ROWS, reach(config.draft) + bucket_of(tree_rows(config.draft)))
        rows = n_tokens + config.max_new_tokens + spare
        self.memory = Memory(-(-rows // _SPARE_ROWS) * _SPARE_ROWS, config.device, dice)

    def target(self) -> DeviceLevel:
        config = self.config
        return self.level(
            config.target, config.draft, "target", "verify_target", config.temperature
        )

    def level(
        self, model: str, draft: Drafting | None, level: str, phase: str, temperature: float
    ) -> DeviceLevel:
        transformer = self.transformer(model)
        drafter = self.drafter(draft, model, transformer, level)
        return DeviceLevel(
            transformer,
            drafter,
            self.memory,
            level=level,
            phase=phase,
            temperature=temperature,
            recorder=self.recorder,
        )

    def transformer(self, model: str) -> FusedTransformer:
        return self.models.transformer(model, self.config.row_invariant, self.config.device)

    def drafter(self, draft: Drafting | None, model: str, over: FusedTransformer, above: str):
        memory, recorder = self.memory, self.recorder
        if draft is None:
            return None
        if isinstance(draft, Eagle2):
            return DeviceEagle2(
                self.models.head(draft, model, over),
                memory,
                tree_size=draft.tree_size,
                depth=draft.depth,
                top_k=draft.top_k,
                recorder=recorder,
            )
        level = below(above)
        if isinstance(draft, Chain):
            small = self.transformer(draft.model)
            return DeviceChain(
                small,
                memory,
                draft_len=draft.draft_len,
                level=level,
                temperature=self.config.temperature,
                recorder=recorder,
            )
        temperature = self.config.temperature if draft.sampling == "sample" else 0.0
        inner = self.level(draft.model, draft.draft, level, "verify_intermediate", temperature)
        return DeviceRefine(inner, draft.at_least, draft.tree_size)


def tokenizer_of(config: Config) -> Tokenizer:
    """The tokenizer that all levels share."""
    return load_tokenizer(locate(split_model(config.target)[0]))
