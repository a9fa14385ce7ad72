"""The forward passes behind recorded spans, and what each reads and multiplies.

Levels that are models run one pass a span, over the tokens that went in.  Two drafters run several:
an EAGLE-2 head ingests what is new and then runs level by level, and on a GPU a chain's tokens are
one span.  No tiles are filled up and nothing is lost: this is the least that could be done.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pandas as pd

from hspec_lab.config import Chain, Config, Eagle2, Refine, Static, below, from_dict, schemes
from hspec_lab.device import Device
from hspec_lab.roofline.family import Families, Family, families_for
from hspec_lab.roofline.head import head_works
from hspec_lab.roofline.shape import split_reference
from hspec_lab.roofline.work import Work, works
from hspec_lab.scheme import parse


def passes_of(
    config: dict | None, level: str, phase: str, spans: pd.DataFrame, on: Device
) -> Iterator[tuple[int, list[Work]]]:
    """How many passes some spans of one phase at one level ran, and the modules of these.

    Args:
        config: as run folders hold it.
        spans: recorded rows.
        on: the kind of device decides how weights are stored and how a head's levels run.

    Yields:
        a number of passes, and their modules with arrays of that length.

    Raises:
        ValueError: a level that the config has not, a model that is not there or has no roofline,
            or spans that do not say how many tokens went in.
    """
    if not config:
        raise ValueError("the run has no config that names its models")
    asked, families = from_dict(config), _without_losses(families_for(on))
    tokens, kv_len = spans["n_tokens"].to_numpy(), spans["kv_len"].to_numpy()
    if tokens.min() < 1 or kv_len.min() < 0:
        raise ValueError("spans do not say how many tokens went in, or behind how many")
    models, draft = _levels(asked)
    if level == "head" and isinstance(draft, Eagle2 | Static):
        yield from _of_head(asked, list(models.values())[-1], draft, tokens, kv_len, on, families)
        return
    if level not in models:
        raise ValueError(f"the config has no level {level!r}; it has {', '.join(models)}")
    if phase == "draft" and asked.device != "cpu":
        tokens, kv_len = _one_by_one(tokens, kv_len)
    shape, scheme = split_reference(models[level])
    yield len(tokens), works(shape, scheme, tokens, kv_len, on.kind, families)


def _without_losses(families: Families) -> Families:
    def bare(family: Family) -> Family:
        return replace(family, tiles=(1,), instructions=())

    products = {key: bare(family) for key, family in families.products.items()}
    return replace(families, products=products, attention=bare(families.attention))


def _levels(config: Config) -> tuple[dict[str, str], object]:
    """Model references by level, target first, and the drafter below them all."""
    level, draft = "target", config.draft
    found = {level: config.target}
    while isinstance(draft, Chain | Refine):
        level = below(level)
        found[level] = draft.model
        draft = draft.draft if isinstance(draft, Refine) else None
    return found, draft


def _one_by_one(tokens: np.ndarray, kv_len: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and contexts of passes over one token each, so many of every span."""
    first = np.repeat(np.cumsum(tokens) - tokens, tokens)
    n = int(tokens.sum())
    return np.ones(n, dtype=np.int64), np.repeat(kv_len, tokens) + np.arange(n) - first


def _of_head(
    config: Config,
    model: str,
    draft: Eagle2 | Static,
    tokens: np.ndarray,
    kv_len: np.ndarray,
    on: Device,
    families: Families,
) -> Iterator[tuple[int, list[Work]]]:
    shape, scheme = split_reference(model)
    head = parse(schemes(config)["head"])

    def batch(rows, out, context):
        n = len(context)
        found = (np.broadcast_to(rows, n), np.broadcast_to(out, n), context)
        return n, head_works(shape, head, scheme.output, *found, on.kind, families)

    # the pending token is among them, it is the tree's root and not ingested yet
    fresh = tokens - 1
    if (new := fresh > 0).any():
        yield batch(fresh[new], 1, kv_len[new])
    stored = 0
    for n in _level_rows(draft):
        # on a GPU a level runs together with the levels above it, else these are in its cache
        rows = stored + n if on.kind == "gpu" else n
        yield batch(rows, n, kv_len + fresh + (0 if on.kind == "gpu" else stored))
        stored += n


def _level_rows(draft: Eagle2 | Static) -> list[int]:
    """Nodes that a head runs on each level below the root: those that get children."""
    if isinstance(draft, Eagle2):
        return [draft.top_k] * (draft.depth - 1)
    depths = Counter(draft.depths[parent] for parent in set(draft.parents[1:]) - {0})
    return [depths[depth] for depth in sorted(depths)]
