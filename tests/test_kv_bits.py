"""Keys and values in few bits: what is stored, what it loses, and that drafts change no text."""

import pytest
import torch
from tiny import FAMILIES, make_head, make_model

from hspec_lab.draft import Eagle2Drafter
from hspec_lab.kv import KVCache
from hspec_lab.model import Checkpoint, EagleHead, Transformer
from hspec_lab.quant.kv_bits import KVRounding, check_device_kv, hadamard, rounding_of
from hspec_lab.scheme import parse
from hspec_lab.tree import from_parents
from hspec_lab.verify import Verifier

BITS = pytest.mark.parametrize("bits", [8, 4, 2])
# of twelve tokens a tree holds many, so that some of a random head's are accepted
FEW = FAMILIES["llama-wide-heads"] | {"vocab_size": 12}
PROMPT = [5, 9]  # shorter than the sinks: trees reach over their end


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def error(rounding: KVRounding, rows: torch.Tensor) -> float:
    return float((rounding.round(rows) - rows).square().mean().sqrt())


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


@pytest.mark.parametrize("D, n", [(1, 1), (2, 2), (16, 16), (64, 64), (80, 16), (96, 32), (6, 2)])
def test_the_rotation_is_hadamards_in_blocks_and_its_own_inverse(D, n):
    signs = [[1.0 - 2 * ((i & j).bit_count() % 2) for j in range(n)] for i in range(n)]
    H = torch.block_diag(*[torch.tensor(signs) * n**-0.5] * (D // n))
    torch.testing.assert_close(hadamard(torch.eye(D)), H)
    torch.testing.assert_close(hadamard(hadamard(randn(3, D))), randn(3, D))


def test_groups_by_hand():
    rows = torch.tensor([[[0.0, 1, 2, 3], [-4, 0, 8, 4]]])
    codes, scale, zero = KVRounding(2, 4, rotate=False).pack(rows)
    assert scale.tolist() == [[1, 4]] and zero.tolist() == [[2, 4]]
    assert codes.tolist() == [[[0b11_10_01_00], [0b10_11_01_00]]]
    codes, scale, zero = KVRounding(4, 4, rotate=False).pack(5 * rows[:, :1])
    assert (scale.tolist(), zero.tolist()) == ([[1]], [[8]]) and codes.tolist() == [[[0x50, 0xFA]]]
    codes, scale, zero = KVRounding(8, 4, rotate=False).pack(torch.tensor([[[1, -127, 63.4, 0]]]))
    assert codes.tolist() == [[[1, -127, 63, 0]]] and scale.tolist() == [[1]] and zero is None


@BITS
@pytest.mark.parametrize("rotate", [True, False])
def test_what_is_packed_stands_for_what_is_rounded(bits, rotate):
    for T, heads, D in [(1, 2, 8), (3, 4, 64), (17, 2, 96), (2, 2, 6), (1, 2, 1), (5, 6, 80)]:
        rounding = KVRounding(bits, D, rotate=rotate)
        rows = randn(T, heads, D, seed=T) * 10.0 ** randn(T, heads, 1, seed=D)
        rows[0, 0] = 0
        rows[-1, 1] = 3.25
        stored = rounding.pack(rows)
        assert torch.equal(rounding.unpack(*stored), rounding.round(rows))
        n_bytes = sum(tensor.nbytes for tensor in stored if tensor is not None)
        assert n_bytes == T * rounding.bytes_per_token(layers=1, kv_heads=heads // 2)
        assert rounding.effective_bits == 8 * n_bytes / rows.numel()


@BITS
def test_a_row_is_rounded_alike_alone_and_beside_a_loud_one(bits):
    rounding, rows = KVRounding(bits, 64), randn(9, 4, 64)
    rows[4] *= 1000
    together = rounding.round(rows)
    for t in range(9):
        assert torch.equal(together[t : t + 1], rounding.round(rows[t : t + 1]))


@pytest.mark.parametrize("rotate", [True, False])
def test_the_error_falls_with_bits_and_is_within_half_a_step(rotate):
    rows = randn(50, 4, 64)
    errors = [error(KVRounding(bits, 64, rotate=rotate), rows) for bits in (2, 4, 8)]
    assert errors[0] > 4 * errors[1] > 16 * errors[2] > 0
    turned = hadamard(rows) if rotate else rows
    for bits, spared in [(2, 0), (4, 0), (8, 1)]:
        rounding = KVRounding(bits, 64, rotate=rotate)
        found = rounding.round(rows)
        found = hadamard(found) if rotate else found
        span = turned.amax(-1) - turned.amin(-1) if bits < 8 else 2 * turned.abs().amax(-1)
        half_step = span / (2**bits - 1 - spared) / 2
        # bf16 moves the zero by a part of 256, and the scale likewise: less than a tenth more here
        assert ((found - turned).abs() <= 1.1 * half_step[..., None]).all()


@pytest.mark.parametrize("bits", [4, 2])
def test_rotation_helps_keys_with_outlier_channels(bits):
    keys = randn(200, 2, 64)
    keys[..., [3, 40]] *= 20 * randn(64)[[3, 40]].sign()
    rotated, plain = (error(KVRounding(bits, 64, rotate=turn), keys) for turn in (True, False))
    assert rotated < 0.7 * plain


@BITS
def test_sinks_are_kept_bit_for_bit_and_nothing_else_is(bits):
    rounding, rows = KVRounding(bits, 16, sinks=3), randn(6, 2, 16)
    positions = torch.tensor([5, 2, 1, 3, 2, 0])  # of a tree: in any order, repeated
    found = rounding.round(rows, positions)
    kept = (found == rows).flatten(1).all(1)
    assert kept.tolist() == [False, True, True, False, True, True]
    assert torch.equal(found[~kept], rounding.round(rows)[~kept])


def test_no_number_is_hidden():
    rows = randn(2, 2, 16)
    rows[0, 0, 3] = torch.nan
    for bits in (8, 4, 2):
        found = KVRounding(bits, 16).round(rows)
        assert found[0, 0].isnan().any() and found[1].isfinite().all()


@pytest.mark.parametrize("bits, tolerance", [(8, 0.01), (4, 0.15)])
def test_attention_over_what_codes_stand_for_is_near_attention_over_the_numbers(bits, tolerance):
    q, rows = randn(2, 5, 64, seed=1), randn(200, 4, 64)
    outputs = []
    for stored in (rows, KVRounding(bits, 64).round(rows)):
        k, v = stored.transpose(0, 1).split(2)
        outputs.append(torch.nn.functional.scaled_dot_product_attention(q, k, v))
    assert (outputs[1] - outputs[0]).norm() < tolerance * outputs[0].norm()


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


def test_a_scheme_says_how_its_cache_rounds():
    assert rounding_of(parse("w4a16-g128"), 64) is rounding_of(parse("fp32"), 64) is None
    assert rounding_of(parse("w4a16-g128-kv4"), 64) == KVRounding(4, 64, sinks=4, rotate=True)
    assert rounding_of(parse("w8a8-kv2"), 32) == KVRounding(2, 32)
    # as the kernels do it
    assert rounding_of(parse("w8a8-kv8"), 32) == KVRounding(8, 32, sinks=0, rotate=False)


def test_what_there_is_none_of_is_refused():
    with pytest.raises(ValueError, match="rounded to 8, 4 or 2 bits, not 3"):
        KVRounding(3, 64)
    with pytest.raises(ValueError, match="head_dim must be at least 1 .* got 0 and 4"):
        KVRounding(4, 0)
    check_device_kv(16)
    check_device_kv(8)
    with pytest.raises(ValueError, match="kv4 has no kernel; keys and values on a device have 16"):
        check_device_kv(4)
