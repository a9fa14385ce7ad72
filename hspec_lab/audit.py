"""Is a text that differs from plain greedy decoding a rounding accident or a bug?

Speculation emits the target's own greedy text.  A pass over a tree adds its numbers up in another
order than a pass over one token, so where the two most likely tokens are almost equal the other one
may win; everything behind that place then differs too.  `audit` looks at the first difference and
measures both sides: how far the candidates lie apart, and how much batching alone moves the logits
of that very text.

cost: plain decoding of the text up to there once, and one pass over it per width of `WIDTHS`.
"""

import torch
from torch import Tensor

# rows per batched pass when the noise is measured; None is the whole text at once
WIDTHS = (None, 24, 7)
# a gap is rounding up to this many times the measured noise, plus the step below
NOISE_FACTOR, SMALLEST = 4.0, 1e-4


@torch.inference_mode()
def audit(
    model, prompt_ids: list[int], plain_ids: list[int], drafted_ids: list[int], prompt: int = 0
) -> dict | None:
    """Judge the first difference between a drafted output and the plain one.

    Both outputs must have been decoded under the same limit, stop texts and EOS: equal tokens are
    then cut at the same place, and one output that merely ends earlier is a bug.

    Args:
        model: the target, in the format both outputs were decoded with.
        prompt_ids: what stands before both outputs.
        plain_ids, drafted_ids: the outputs.
        prompt: its number, for the record.

    Returns:
        None if the outputs are equal, else: prompt, position, plain_token, drafted_token (None
        behind the end of an output), gap (between the two highest logits, from one-token steps),
        behind (how far the worse of the two tokens lies below the highest), noise (largest
        difference at that position between the logits of one-token steps and of batched passes),
        verdict: `rounding` if gap and behind are at most 4 * noise + 1e-4, else `bug`.
    """
    if plain_ids == drafted_ids:
        return None
    pairs = zip(plain_ids, drafted_ids, strict=False)
    shorter = min(len(plain_ids), len(drafted_ids))
    position = next((i for i, (one, other) in enumerate(pairs) if one != other), shorter)
    found = {
        "prompt": prompt,
        "position": position,
        "plain_token": plain_ids[position] if position < len(plain_ids) else None,
        "drafted_token": drafted_ids[position] if position < len(drafted_ids) else None,
    }
    if position == shorter:
        return found | {"gap": None, "behind": None, "noise": None, "verdict": "bug"}
    stepwise = _in_steps(model, prompt_ids, plain_ids[:position])
    noise = max(
        float((_in_passes(model, prompt_ids + plain_ids[:position], width) - stepwise).abs().max())
        for width in WIDTHS
    )
    first, second = stepwise.topk(2).values.tolist()
    chosen = stepwise[[found["plain_token"], found["drafted_token"]]]
    gap, behind = first - second, first - float(chosen.min())
    allowed = NOISE_FACTOR * noise + SMALLEST
    verdict = "rounding" if max(gap, behind) <= allowed else "bug"
    return found | {"gap": gap, "behind": behind, "noise": noise, "verdict": verdict}


def _in_steps(model, prompt_ids: list[int], output_ids: list[int]) -> Tensor:
    """Logits [V] behind the text as plain decoding computes them: prompt, then token by token."""
    cache = model.new_cache(len(prompt_ids) + len(output_ids))
    features = model.read(prompt_ids, cache)
    for token in output_ids:
        features = model.read([token], cache)
    return model.logits(features[-1:])[0]


def _in_passes(model, ids: list[int], width: int | None) -> Tensor:
    """Logits [V] behind the text, computed `width` rows at a time, the output layer's too."""
    cache = model.new_cache(len(ids))
    width = width or len(ids)
    for start in range(0, len(ids), width):
        features = model.read(ids[start : start + width], cache)
    return model.logits(features)[-1]
