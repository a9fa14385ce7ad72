"""Tree attention: averages done by hand, rows that decode alone to the same bits, refusals."""

import pytest
import torch

from hspec_kernels.cases.tree_attention import bitsets, random_tree
from hspec_kernels.tree_attention import Config, tree_attention, tree_attention_ref

BOTH = pytest.mark.parametrize("attend", [tree_attention_ref, tree_attention])
MODES = pytest.mark.parametrize("row_invariant", [False, True], ids=["tiles", "paths"])
FORK = [-1, 0, 0]  # a root and its two children


def length(n: int, device: str) -> torch.Tensor:
    return torch.tensor([n], dtype=torch.int32, device=device)


def inputs(generator, device, T=5, H=2, K=1, D=16, capacity=128, kv_len=61) -> dict:
    """Normal queries and cache rows; 5 rows from place 61 on cross the end of a split of 64."""
    return {
        "q": torch.randn(T, H, D, generator=generator).half().to(device),
        "kv": torch.randn(capacity, 2 * K, D, generator=generator).half().to(device),
        "kv_len": length(kv_len, device),
    }


@BOTH
@MODES
def test_a_query_of_zeros_averages_the_values_it_sees(attend, row_invariant, device):
    kv = torch.full((8, 2, 16), torch.nan, dtype=torch.float16, device=device)
    kv[:4, 0] = 0.25
    kv[:4, 1] = torch.tensor([[1.0], [2.0], [6.0], [9.0]])  # prefix, root, children
    q = torch.zeros(3, 2, 16, dtype=torch.float16, device=device)
    y = attend(q, kv, length(1, device), bitsets(FORK).to(device), row_invariant=row_invariant)
    assert y[:, 0, 0].tolist() == [1.5, 3.0, 4.0] and (y == y[:, :1, :1]).all()
    y = attend(q, kv, length(1, device), row_invariant=row_invariant)
    assert y[:, 0, 0].tolist() == [1.5, 3.0, 4.5]  # a path: the third row sees all four


@BOTH
@MODES
def test_a_head_reads_the_keys_and_scales_of_its_group(attend, row_invariant, device):
    # two key heads, four query heads; a score of 64 outweighs one of 0 beyond fp16
    kv = torch.zeros(64, 4, 16, dtype=torch.int8, device=device)
    kv[0, 0], kv[1, 1] = 8, 8  # keys: head 0 prefers row 0, head 1 row 1
    kv[:2, 2], kv[:2, 3] = 10, 20
    scale = torch.full((64, 4), torch.nan, dtype=torch.float16, device=device)
    scale[:2, :2] = 0.25
    scale[0, 2:], scale[1, 2:] = 0.5, 2.0
    q = torch.full((1, 4, 16), 8.0, dtype=torch.float16, device=device)
    y = attend(q, kv, length(1, device), kv_scale=scale, row_invariant=row_invariant)
    assert y[0, :, 0].tolist() == [5.0, 5.0, 40.0, 40.0]


def test_a_row_of_a_tree_has_the_bits_of_decoding_it_alone(device, generator):
    given = inputs(generator, device)
    kv, n = given["kv"], int(given["kv_len"])
    parents = [-1, 0, 0, 1, 3]
    y = tree_attention(**given, ancestors=bitsets(parents).to(device), row_invariant=True)
    for node in range(5):
        path = [node]
        while parents[path[0]] >= 0:
            path.insert(0, parents[path[0]])
        committed = torch.full_like(kv, torch.nan)
        committed[:n] = kv[:n]
        committed[n : n + len(path)] = kv[[n + i for i in path]]
        q, at = given["q"][node : node + 1], length(n + len(path) - 1, device)
        assert torch.equal(tree_attention(q, committed, at, row_invariant=True), y[node : node + 1])


def test_a_path_has_the_same_bits_as_a_tree_and_from_any_start(device, generator):
    given = inputs(generator, device)
    y = tree_attention(**given, row_invariant=True)
    chain = bitsets([-1, 0, 1, 2, 3]).to(device)
    assert torch.equal(tree_attention(**given, ancestors=chain, row_invariant=True), y)
    later = given | {"q": given["q"][3:], "kv_len": given["kv_len"] + 3}
    assert torch.equal(tree_attention(**later, row_invariant=True), y[3:])


def test_what_a_row_does_not_see_cannot_reach_it_on_its_own_path(device, generator):
    given = inputs(generator, device, T=3, capacity=64, kv_len=3)
    given["ancestors"] = bitsets(FORK).to(device)
    y = tree_attention(**given, row_invariant=True)
    given["kv"][4] = torch.nan  # the first child
    loud = tree_attention(**given, row_invariant=True)
    assert torch.equal(loud[[0, 2]], y[[0, 2]]) and loud[1].isnan().all()


@MODES
def test_a_nan_in_the_prefix_is_not_lost_in_the_merge(row_invariant, device, generator):
    given = inputs(generator, device, T=1, capacity=64, kv_len=8)
    given["kv"][2, 0, 0] = torch.nan
    assert tree_attention(**given, row_invariant=row_invariant).isnan().all()


@MODES
def test_it_repeats_bit_for_bit(row_invariant, device, generator):
    given = inputs(generator, device)
    first = tree_attention(**given, row_invariant=row_invariant)
    assert torch.equal(tree_attention(**given, row_invariant=row_invariant), first)


@MODES
def test_splits_beyond_the_prefix_add_nothing(row_invariant, device, generator):
    # 8 rows to a tile: the ninth is in another
    given = inputs(generator, device, T=9, capacity=256, kv_len=40)
    config = Config(block_m=16, splits=8, num_warps=4, num_stages=2)
    y = tree_attention(**given, config=config, row_invariant=row_invariant)
    torch.testing.assert_close(y, tree_attention_ref(**given), rtol=2**-9, atol=2**-12)


@MODES
def test_neighbours_of_every_tensor_are_left_alone(row_invariant, device, generator):
    given = inputs(generator, device, T=3, capacity=64, kv_len=5)
    wanted = tree_attention_ref(**given)
    big = torch.full((5, 2, 16), torch.nan, dtype=torch.float16, device=device)
    large = torch.full((66, 2, 16), torch.nan, dtype=torch.float16, device=device)
    out = torch.full((5, 2, 16), 7.0, dtype=torch.float16, device=device)
    big[1:4], large[1:65] = given["q"], given["kv"]
    y = tree_attention(
        big[1:4], large[1:65], given["kv_len"], out=out[1:4], row_invariant=row_invariant
    )
    assert y.data_ptr() == out[1].data_ptr() and (out[[0, 4]] == 7).all()
    torch.testing.assert_close(y, wanted, rtol=2**-9, atol=2**-12)


@MODES
def test_rows_beyond_the_cache_are_not_read(row_invariant, device, generator):
    large = torch.full((70, 2, 16), torch.nan, dtype=torch.float16, device=device)
    given = inputs(generator, device, T=3, capacity=64, kv_len=63)  # one row fits
    large[:64] = given["kv"]
    given["kv"] = large[:64]
    y = tree_attention(**given, row_invariant=row_invariant, trusted=True)
    assert y.isfinite().all()


def test_bitsets_say_who_is_above_whom(generator):
    assert bitsets(FORK).tolist() == [[1], [3], [5]]
    parents = random_tree(generator, 130)
    words = bitsets(parents)
    assert words.shape == (130, 3)
    for node in (1, 63, 64, 129):
        bit = 1 << node % 64
        own = torch.tensor(bit if bit < 2**63 else bit - 2**64)
        assert (words[node] ^ words[parents[node]])[node // 64] == own


HALF = torch.float16


@pytest.mark.parametrize(
    "change, message",
    [
        ({"q": torch.zeros(5, 2, 16)}, "q must be float16 or bfloat16, got float32"),
        ({"q": torch.zeros(5, 2, 32, dtype=HALF)[..., ::2]}, "q must be contiguous"),
        ({"q": torch.zeros(5, 2, 24, dtype=HALF)}, "D must be one of .*, got 24"),
        ({"q": torch.zeros(1025, 2, 16, dtype=HALF)}, "T must be 1..1024, got 1025"),
        ({"q": torch.zeros(0, 2, 16, dtype=HALF)}, "T must be 1..1024, got 0"),
        ({"q": torch.zeros(129, 2, 16, dtype=HALF)}, "capacity must be 129..*, got 128"),
        ({"q": torch.zeros(5, 65, 16, dtype=HALF)}, "H = 65 a multiple 1..64 of K"),
        ({"kv": torch.zeros(128, 3, 16, dtype=HALF)}, r"kv must be .*, got \[128, 3, 16\]"),
        ({"kv": torch.zeros(128, 6, 16, dtype=HALF)}, "H = 2 a multiple"),
        ({"kv": torch.zeros(128, 0, 16, dtype=HALF)}, "H = 2 a multiple"),
        ({"kv": torch.zeros(128, 2, 32, dtype=HALF)}, r"kv must be \[any, any, 16\]"),
        ({"kv": torch.zeros(128, 2, 16, dtype=torch.bfloat16)}, "kv must be float16 or int8"),
        ({"kv": torch.zeros(128, 2, 16, dtype=torch.int8)}, "kv_scale goes with int8"),
        ({"kv_scale": torch.zeros(128, 2, dtype=HALF)}, "kv_scale goes with int8"),
        ({"kv_len": torch.zeros(1, dtype=torch.int64)}, "kv_len must be int32"),
        ({"ancestors": torch.zeros(5, 2, dtype=torch.int64)}, r"ancestors must be \[5, 1\]"),
        ({"ancestors": torch.zeros(5, 1, dtype=torch.int32)}, "ancestors must be int64"),
        ({"out": torch.zeros(5, 2, 32, dtype=HALF)}, r"out must be \[5, 2, 16\]"),
    ],
)
def test_what_does_not_fit_is_refused(change, message, device, generator):
    change = {name: tensor.to(device) for name, tensor in change.items()}
    with pytest.raises(ValueError, match=message):
        tree_attention(**(inputs(generator, device) | change))


def test_scales_of_another_shape_are_refused(device, generator):
    given = inputs(generator, device)
    given["kv"] = given["kv"].to(torch.int8)
    with pytest.raises(ValueError, match=r"kv_scale must be \[128, 2\]"):
        tree_attention(**given, kv_scale=torch.ones(128, 1, dtype=HALF, device=device))
