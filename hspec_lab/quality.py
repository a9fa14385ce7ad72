"""What a quantized model has lost: on held-out text, and as the target of drafters.

    perplexity, bits per byte   of the text itself
    KL                          mean over tokens of KL(p_reference || p), nats
    agreement                   share of tokens at which both would say the same next token

Text is read in windows from empty caches, so a model is asked about every token but each window's
first.  The reference is usually the same model with its weights as they are in its files.  Where in
the model it was lost is the business of `layer_quality`.

cost: one forward pass over the text a model; the reference's once, while it fits `max_bytes`.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from tokenizers import Tokenizer
from torch import Tensor

from hspec_lab import zoo
from hspec_lab.config import Chain, Config, Drafting, Eagle2, Refine
from hspec_lab.experiment import Session
from hspec_lab.model import Transformer
from hspec_lab.pipeline import Models

WINDOW = 512
_ROWS = 128  # rows whose logits are in memory at once
_TREE = Eagle2(tree_size=24, depth=3, top_k=8)
_DRAFT_LEN, _AT_LEAST = 4, 6


@dataclass(frozen=True, slots=True)
class Window:
    """A stretch of text: its token ids, and the bytes of text that all but the first stand for."""

    ids: tuple[int, ...]
    n_bytes: int


@dataclass(frozen=True, slots=True)
class Quality:
    """How well a model predicts text, and how far it is from its reference.

    Attributes:
        perplexity: per token.
        bits_per_byte: of the text's UTF-8.
        kl: nats per token, mean of KL(p_reference || p).
        agreement: 0..1, same most likely next token.
        n_tokens: predicted tokens behind these numbers.
    """

    perplexity: float
    bits_per_byte: float
    kl: float
    agreement: float
    n_tokens: int


def text_ids(
    tokenizer: Tokenizer,
    texts: Sequence[str] | None = None,
    *,
    window: int = WINDOW,
    n_windows: int | None = None,
) -> list[Window]:
    """Cut texts into windows of tokens: the first of every text, then the second of every text.

    Args:
        texts: None: the zoo's held-out modules that no calibration looks at.
        window: tokens per window; a text's last one may be shorter, but has at least two.
        n_windows: so many of them; None: all.

    Raises:
        ValueError: a window of fewer than two tokens, or no text to predict.
    """
    if type(window) is not int or window < 2:
        raise ValueError(f"window must be a whole number >= 2, got {window!r}")
    numbered = []
    for number, text in enumerate(zoo.held_out("evaluation") if texts is None else texts):
        coded = tokenizer.encode(text)
        for start in range(0, len(coded.ids) - 1, window):
            part = slice(start, start + window)
            ends = [end for _, end in coded.offsets[part]]
            n_bytes = len(text[ends[0] : ends[-1]].encode())
            numbered.append((start, number, Window(tuple(coded.ids[part]), n_bytes)))
    windows = [entry for *_, entry in sorted(numbered, key=lambda entry: entry[:2])][:n_windows]
    if not windows:
        raise ValueError("no text to predict: give texts of at least two tokens")
    return windows


class Reference:
    """A model's log-probabilities on windows, computed once each while they fit.

    Args:
        max_bytes: of what is kept; windows beyond it are computed each time.
    """

    def __init__(self, model: Transformer, max_bytes: int = 1 << 29):
        self.model, self._left = model, max_bytes
        self._kept: dict[tuple[int, ...], Tensor] = {}

    @torch.inference_mode()
    def log_p(self, window: Window) -> Callable[[slice], Tensor]:
        """Rows of a window's log-probabilities, fp32 [rows, V], given a slice of rows."""
        kept = self._kept.get(window.ids)
        if kept is not None:
            return lambda rows: kept[rows]
        features = _features(self.model, window)
        n_bytes = 4 * len(features) * self.model.n_known
        if n_bytes > self._left:
            return lambda rows: _log_p(self.model, features[rows])
        kept = torch.cat([_log_p(self.model, features[rows]) for rows in _parts(features)])
        self._left -= n_bytes
        self._kept[window.ids] = kept
        return lambda rows: kept[rows]


@torch.inference_mode()
def measure_quality(
    model: Transformer, reference: "Transformer | Reference", windows: Sequence[Window]
) -> Quality:
    """Compare a model with its reference on text.

    Args:
        model: of the same vocabulary as the reference.
        reference: the 16-bit model; a `Reference` of it is asked once for all models.
        windows: from `text_ids`.

    Raises:
        ValueError: no windows, vocabularies of different size, or logits that are not finite.
    """
    reference = reference if isinstance(reference, Reference) else Reference(reference)
    if not windows:
        raise ValueError("no windows to measure on: make some with text_ids")
    if model.n_known != reference.model.n_known:
        raise ValueError(
            f"the model knows {model.n_known} tokens, its reference {reference.model.n_known}; "
            "both must share one vocabulary"
        )
    sums = torch.zeros(3, dtype=torch.float64)
    for window in windows:
        features, of_reference = _features(model, window), reference.log_p(window)
        labels = torch.tensor(window.ids[1:])
        for rows in _parts(features):
            p, q = of_reference(rows), _log_p(model, features[rows])
            sums += _compared(p.cpu(), q.cpu(), labels[rows])
    n_tokens = sum(len(window.ids) - 1 for window in windows)
    nats, kl, agreed = sums.tolist()
    n_bytes = sum(window.n_bytes for window in windows)
    bits_per_byte = nats / math.log(2) / n_bytes if n_bytes else math.nan
    return Quality(
        math.exp(nats / n_tokens), bits_per_byte, kl / n_tokens, agreed / n_tokens, n_tokens
    )


def _features(model: Transformer, window: Window) -> Tensor:
    """What the model makes of all tokens of a window but the last, [n - 1, hidden]."""
    ids = list(window.ids[:-1])
    return model.read(ids, model.new_cache(len(ids)))


def _parts(features: Tensor) -> list[slice]:
    return [slice(start, start + _ROWS) for start in range(0, len(features), _ROWS)]


def _log_p(model: Transformer, features: Tensor) -> Tensor:
    return torch.log_softmax(model.logits(features).float(), dim=-1)


def _compared(p: Tensor, q: Tensor, labels: Tensor) -> Tensor:
    """Sums over rows, fp64 [3]: -log q of the labels, KL(p || q), equal most likely tokens."""
    nats = -q.gather(1, labels[:, None]).double().sum()
    # an impossible token of the reference adds nothing, whatever the model says of it
    kl = torch.where(p.isneginf(), 0.0, p.exp() * (p - q)).double().sum()
    return torch.stack([nats, kl, (p.argmax(-1) == q.argmax(-1)).double().sum()])


def mean_emitted(
    config: Config,
    intermediate: str = "zoo:intermediate@fp32",
    *,
    drafts: dict[str, Drafting] | None = None,
    models: Models | None = None,
) -> dict[str, float]:
    """Tokens a round emits with each drafter, greedily; what quantization leaves of acceptance.

    Args:
        config: target, prompts, max_new_tokens, threads and device; its own draft is ignored.
        intermediate: the smaller model of chain and hierspec.
        drafts: by name; None: `chain`, `eagle2` and `hierspec` with small fixed trees.
        models: shared with other calls, so that a model is loaded once.

    Returns:
        by name, tokens emitted per round over all prompts; NaN where no output had a round.
    """
    models, found = models or Models(), {}
    for name, draft in (drafts or fixed_drafts(intermediate)).items():
        session = Session(replace(config, draft=draft, temperature=0.0), models, record=False)
        rounds = []
        for index in range(len(session.prompts)):
            rounds += [item.n_emitted for item in session.rounds_of(index) if item.index >= 0]
        found[name] = sum(rounds) / len(rounds) if rounds else math.nan
    return found


def fixed_drafts(intermediate: str) -> dict[str, Drafting]:
    """The drafters with which `mean_emitted` compares targets."""
    return {
        "chain": Chain(intermediate, draft_len=_DRAFT_LEN),
        "eagle2": _TREE,
        "hierspec": Refine(intermediate, _TREE, at_least=_AT_LEAST),
    }
