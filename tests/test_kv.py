"""A cache of few bits in a model: what is kept, and that drafts change neither text nor cache."""

import pytest
import torch
from tiny import FAMILIES, make_head, make_model

from hspec_lab.draft import Eagle2Drafter
from hspec_lab.kv import KVCache
from hspec_lab.model import Checkpoint, EagleHead, Transformer
from hspec_lab.quant.kv_bits import KVRounding
from hspec_lab.tree import from_parents
from hspec_lab.verify import Verifier

BITS = pytest.mark.parametrize("bits", [8, 4, 2])
# of twelve tokens a tree holds many, so that some of a random head's are accepted
FEW = FAMILIES["llama-wide-heads"] | {"vocab_size": 12}
PROMPT = [5, 9]  # shorter than the sinks: trees reach over their end


def opened(folder, rounding=None, **options) -> Transformer:
    """A model whose caches round like this."""
    model = Transformer(Checkpoint(folder), "fp32", **options)
    shape = model.shape
    sizes = shape.layers, shape.kv_heads, shape.head_dim
    model.new_cache = lambda capacity: KVCache(*sizes, capacity, torch.float32, "cpu", rounding)
    return model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("models") / "m", **FEW)


@pytest.mark.parametrize("row_invariant", [False, True])
def test_models_lose_less_with_more_bits(folder, row_invariant):
    ids = torch.randint(0, 12, (40,), generator=torch.Generator().manual_seed(0)).tolist()
    logits = {}
    for bits in (16, 8, 4, 2):
        rounding = None if bits == 16 else KVRounding(bits, 16)
        model = opened(folder, rounding, row_invariant=row_invariant)
        cache = model.new_cache(40)
        with torch.inference_mode():
            model.read(ids[:30], cache)
            logits[bits] = model.logits(model.forward(ids[30:], cache))
    errors = [float((logits[bits] - logits[16]).norm() / logits[16].norm()) for bits in (8, 4, 2)]
    assert errors[0] < 0.03 and 4 * errors[0] < errors[1] < errors[2] / 2, errors


@BITS
def test_a_models_cache_keeps_its_sinks_and_rounds_the_rest(folder, bits):
    model, ids = opened(folder, KVRounding(bits, 16, sinks=3)), [5, 9, 3, 8, 1]
    cache, plain = model.new_cache(8), opened(folder).new_cache(8)
    with torch.inference_mode():
        for stored in (cache, plain):
            model.read(ids[:2], stored)
            model.read(ids[2:], stored)
    found, wanted = cache.storage[0, :5], plain.storage[0, :5]  # the first layer reads no cache
    assert torch.equal(found[:3], wanted[:3])
    assert torch.equal(found[3:], cache.rounding.round(wanted[3:]))
    assert not torch.equal(found[3:], wanted[3:])


@pytest.mark.parametrize("row_invariant", [False, True])
def test_rows_of_every_kind_know_their_place(folder, row_invariant):
    geometry = opened(folder, row_invariant=row_invariant).geometry
    assert geometry.path_rows(0, 4).positions().tolist() == [0, 1, 2, 3]
    assert geometry.path_rows(2, 3).positions().tolist() == [2, 3, 4]
    assert geometry.path_rows(7, 1).positions().tolist() == [7]
    # a second level of a head's tree: two rows before it, each sees one of them and itself
    seen = torch.tensor([[True, False, True, False], [False, True, False, True]])
    assert geometry.tree_rows(3, seen, [1, 1], hidden_before=2).positions().tolist() == [4, 4]


def decoded(model, drafter, n: int) -> Verifier:
    """A level that has emitted at least n tokens; they lie behind `PROMPT` in its `tokens`."""
    options = {"phase": "verify_target", "capacity": 96, "temperature": 0.0, "choose": None}
    level = Verifier(model, drafter, level="target", **options)
    with torch.inference_mode():
        level.start(PROMPT)
        while len(level.tokens) < n:
            level.round()
    return level


@BITS
def test_drafts_leave_the_text_and_the_cache_as_they_are(folder, bits, monkeypatch):
    """Also where a tree is written over the end of the sinks and its rows are moved among them."""
    rounding = KVRounding(bits, 16)
    model = opened(folder, rounding, row_invariant=True)
    head = folder.with_name("head")
    if not head.exists():
        make_head(head, folder)
    head = EagleHead(Checkpoint(head), "fp32", model)
    drafter = Eagle2Drafter(head, tree_size=24, depth=4, top_k=5, capacity=96)
    paths, commit = [], KVCache.commit
    monkeypatch.setattr(KVCache, "commit", lambda c, path: paths.append(path) or commit(c, path))
    drafted = decoded(model, drafter, 30)
    assert any(path[-1] >= len(path) for path in paths)  # rows were moved
    plain = decoded(model, None, len(drafted.tokens))
    assert drafted.tokens == plain.tokens
    n = drafted.cache.kv_len
    assert torch.equal(drafted.cache.storage[:, :n], plain.cache.storage[:, :n])


def test_a_tree_rolled_back_into_the_sinks_leaves_nothing_behind(folder):
    model = opened(folder, KVRounding(2, 16), row_invariant=True)
    cache, fresh = model.new_cache(32), model.new_cache(32)
    tree = from_parents([3, 7, 9, 1, 4, 4], [-1, 0, 0, 1, 1, 2])
    with torch.inference_mode():
        model.read([5, 9, 3, 8, 8, 8], cache)
        cache.truncate(1)
        model.forward(tree.tokens, cache, tree)
        cache.commit([0, 2, 5])
        model.read([6, 7], cache)
        for token in [5, 3, 9, 4, 6, 7]:
            model.read([token], fresh)
    assert cache.kv_len == fresh.kv_len == 6
    assert torch.equal(cache.storage[:, :6], fresh.storage[:, :6])


def test_a_loud_token_in_a_tree_changes_no_other_row(folder):
    model = opened(folder, KVRounding(4, 16))
    model.embedding[11] *= 1000
    outputs = []
    for neighbour in (10, 11):
        cache = model.new_cache(16)
        model.read([5, 9, 3, 1], cache)
        tree = from_parents([3, 7, neighbour, 8], [-1, 0, 0, 1])
        outputs.append(model.forward(tree.tokens, cache, tree)[[0, 1, 3]])
    assert torch.equal(*outputs)


def test_a_formats_name_says_how_the_cache_rounds(folder):
    for format, rounding in [("fp32", None), ("fp32-kv4", KVRounding(4, 16))]:
        cache = Transformer(Checkpoint(folder), format).new_cache(8)
        assert cache.rounding == rounding and cache.storage.dtype == torch.float32


def test_a_cache_says_what_it_works_in_and_what_it_would_store():
    sizes = 3, 2, 64, 10, torch.float32, "cpu"
    plain, rounded = KVCache(*sizes), KVCache(*sizes, rounding=KVRounding(4, 64, sinks=4))
    values = 3 * 2 * 2 * 64  # of a token
    assert plain.nbytes == rounded.nbytes == 10 * values * 4
    assert plain.stored_nbytes == rounded.stored_nbytes == 0
    plain.kv_len = rounded.kv_len = 9
    assert plain.stored_nbytes == 9 * values * 4
    token = values // 2 + 3 * 2 * 2 * (2 + 2)
    assert rounded.stored_nbytes == 4 * values * 4 + 5 * token
    rounded.kv_len = 3
    assert rounded.stored_nbytes == 3 * values * 4
    assert KVRounding(4, 64).effective_bits == 4.5 and KVRounding(8, 64).effective_bits == 8.25
