"""From a config to levels that can decode: resolve, check, load, nest.

Everything a person can get wrong is checked before any weight is quantized, and a model that two
levels or two configs share is loaded once.
"""

from pathlib import Path

import torch
from tokenizers import Tokenizer

from hspec_lab import zoo
from hspec_lab.config import Chain, Config, Drafting, Eagle2, Refine, split_model
from hspec_lab.draft import Eagle2Drafter, RefineDrafter
from hspec_lab.model import Checkpoint, EagleHead, Transformer
from hspec_lab.model.shape import ROPE_SLACK
from hspec_lab.sample import seeded_choose
from hspec_lab.text import check_same_vocabulary, load_tokenizer
from hspec_lab.trace import NO_RECORDER
from hspec_lab.verify import Verifier

# what the level below a level is called
BELOW = {
    "target": "intermediate",
    "intermediate": "intermediate2",
    "intermediate2": "intermediate3",
}


def locate(where: str) -> Path:
    """The folder behind `zoo:name` or a path."""
    return zoo.folder(where[4:]) if where.startswith("zoo:") else Path(where).expanduser()


def head_folder(model: str) -> Path:
    """Where the EAGLE-2 head of a model lies when none is named: beside it, `<name>-eagle2`."""
    folder = locate(split_model(model)[0])
    return folder.with_name(folder.name + "-eagle2")


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
    if isinstance(draft, Eagle2):
        return draft.depth + 1
    if isinstance(draft, Chain):
        return draft.draft_len + 1
    return draft.at_least + reach(draft.draft) + 1


def tree_rows(draft: Drafting | None) -> int:
    """Cache rows a level needs for the proposals of its drafter."""
    if draft is None:
        return 2
    return draft.tree_size if isinstance(draft, Eagle2) else reach(draft)


class Models:
    """Loaded models, by reference; loading the same one again costs nothing."""

    def __init__(self):
        self._loaded: dict[tuple, object] = {}

    def transformer(self, model: str, row_invariant: bool, device: str) -> Transformer:
        where, format = split_model(model)
        key = (str(locate(where)), format, row_invariant, device)
        if key not in self._loaded:
            checkpoint = Checkpoint(locate(where))
            self._loaded[key] = Transformer(
                checkpoint, format, row_invariant=row_invariant, device=device
            )
        return self._loaded[key]

    def head(self, head: str | None, model: str, over: Transformer) -> EagleHead:
        where, format = split_model(head) if head else (str(head_folder(model)), "fp32")
        key = (str(locate(where)), format, id(over))
        if key not in self._loaded:
            self._loaded[key] = EagleHead(Checkpoint(locate(where)), format, over)
        return self._loaded[key]


def check(config: Config) -> None:
    """Find what is wrong with a config before any long work starts; ValueError says what."""
    if config.device != "cpu" and not torch.cuda.is_available():
        raise ValueError(f"device {config.device!r}: no CUDA device here; use device='cpu'")
    models = levels(config)
    for model in models:
        Checkpoint(locate(split_model(model)[0]))
    target = locate(split_model(models[0])[0])
    load_tokenizer(target)
    for model in models[1:]:
        check_same_vocabulary(target, locate(split_model(model)[0]))
    draft, model = config.draft, config.target
    while isinstance(draft, Refine):
        draft, model = draft.draft, draft.model
    if isinstance(draft, Eagle2):
        Checkpoint(locate(split_model(draft.head)[0]) if draft.head else head_folder(model))
    if reach(config.draft) > ROPE_SLACK:
        raise ValueError(
            f"the draft reaches {reach(config.draft)} tokens ahead, beyond the cache's "
            f"{ROPE_SLACK} spare positions: lower draft_len, at_least or depth"
        )


def check_prompt(config: Config, models: Models, n_tokens: int) -> None:
    """ValueError when a prompt and its output do not fit a level's context."""
    if n_tokens == 0:
        raise ValueError("the prompt is empty; decoding needs at least one token")
    for model in levels(config):
        shape = models.transformer(model, config.row_invariant, config.device).shape
        if n_tokens + config.max_new_tokens > shape.context:
            raise ValueError(
                f"a prompt of {n_tokens} tokens and {config.max_new_tokens} new ones exceed the "
                f"context of {model}, {shape.context} tokens: shorten one of them"
            )


def build(
    config: Config, models: Models, n_tokens: int, *, choose=None, recorder=NO_RECORDER
) -> Verifier:
    """The target's level with all its drafters behind it.

    Args:
        n_tokens: longest prompt to be decoded, in tokens.
        choose: draws an index from probabilities; seeded by the config when None.
        recorder: is told about every phase of every level.
    """
    check_prompt(config, models, n_tokens)
    choose = choose or seeded_choose(config.seed)
    return _Builder(config, models, n_tokens, choose, recorder).target()


class _Builder:
    def __init__(self, config: Config, models: Models, n_tokens: int, choose, recorder):
        self.config, self.models, self.choose, self.recorder = config, models, choose, recorder
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
            transformer,
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
        if isinstance(draft, Eagle2):
            return Eagle2Drafter(
                self.models.head(draft.head, model, over),
                tree_size=draft.tree_size,
                depth=draft.depth,
                top_k=draft.top_k,
                capacity=self.text_rows,
                recorder=self.recorder,
            )
        level = BELOW.get(above, "intermediate3")
        if isinstance(draft, Chain):
            return RefineDrafter(
                self.verifier(draft.model, None, level, "draft"), at_least=draft.draft_len
            )
        inner = self.verifier(
            draft.model, draft.draft, level, "verify_intermediate", draft.sampling == "sample"
        )
        return RefineDrafter(inner, at_least=draft.at_least)


def tokenizer_of(config: Config) -> Tokenizer:
    """The tokenizer that all levels share."""
    return load_tokenizer(locate(split_model(config.target)[0]))
