"""`head_topk`: exact order and ties, rows without a distribution, rows that keep to themselves."""

import math

import pytest
import torch

from hspec_kernels.head_topk import CONFIGS, MAX_V, Config, choose, head_topk, head_topk_ref

BOTH = pytest.mark.parametrize("op", [head_topk_ref, head_topk])
# small blocks, so that a short row is cut into several
SMALL = Config(64, 2, 4)
NAN, INF = math.nan, math.inf


def rows(*values, device, dtype=torch.float32):
    return torch.tensor(values, dtype=dtype, device=device)


@BOTH
def test_logits_descend_and_ties_go_to_the_lower_column(op, device):
    ids, log_p = op(rows([0.0, math.log(2), math.log(2), math.log(3)], device=device), 4)
    assert ids.tolist() == [[3, 1, 2, 0]]
    assert log_p.exp().tolist()[0] == pytest.approx([3 / 8, 2 / 8, 2 / 8, 1 / 8])


@BOTH
def test_zero_and_minus_zero_are_a_tie(op, device):
    ids, _ = op(rows([-1.0, -0.0, 0.0, -0.0, 1.0], device=device), 4)
    assert ids.tolist() == [[4, 1, 2, 3]]


@BOTH
def test_negative_logits_keep_their_order(op, device):
    ids, _ = op(rows([-3.0, -1.0, -2.0, -1.0, -60000.0], device=device, dtype=torch.float16), 5)
    assert ids.tolist() == [[1, 3, 2, 0, 4]]


@BOTH
def test_a_trimmed_vocabulary_gives_real_ids_but_ties_by_column(op, device):
    token_map = torch.tensor([90, 7, 50], dtype=torch.int32, device=device)
    ids, _ = op(rows([1.0, 1.0, 2.0], device=device), 3, token_map=token_map)
    assert ids.tolist() == [[50, 90, 7]]


@BOTH
def test_padding_columns_are_not_seen(op, device):
    ids, log_p = op(rows([0.0, 0.0, NAN, INF], device=device), 2, n_known=2)
    assert ids.tolist() == [[0, 1]]
    assert log_p.exp().tolist()[0] == pytest.approx([0.5, 0.5])


@BOTH
def test_impossible_columns_come_last_in_order(op, device):
    ids, log_p = op(rows([-INF, 1.0, -INF, 1.0], device=device), 4)
    assert ids.tolist() == [[1, 3, 0, 2]]
    assert log_p[0, 2:].tolist() == [-INF, -INF]


@BOTH
@pytest.mark.parametrize(
    "bad",
    [
        pytest.param([1.0, NAN, 5.0], id="nan"),
        pytest.param([1.0, 2.0, INF], id="infinite"),
        pytest.param([-INF] * 3, id="nothing-possible"),
    ],
)
def test_a_row_without_a_distribution_is_nan_with_ids_in_bounds(op, bad, device):
    token_map = torch.tensor([11, 12, 13], dtype=torch.int32, device=device)
    ids, log_p = op(rows([0.0, 1.0, 0.0], bad, device=device), 2, token_map=token_map)
    assert log_p[1].isnan().all()
    assert ids.tolist() == [[12, 11], [11, 12]]
    assert log_p[0].tolist() == pytest.approx([1 - math.log(math.e + 2), -math.log(math.e + 2)])


@BOTH
def test_no_log_probability_is_above_zero(op, device):
    _, log_p = op(rows([40.0, 0.0, 0.0], [0.1, -30.0, -90.0], device=device), 1)
    assert (log_p <= 0).all()


@pytest.mark.parametrize(
    "row",
    [
        pytest.param(torch.arange(150.0), id="best-in-the-last-block"),
        pytest.param(-torch.arange(150.0), id="best-in-the-first-block"),
        pytest.param(torch.zeros(150), id="all-equal"),
        pytest.param((torch.arange(150.0) % 64).flip(0), id="one-good-column-a-block"),
    ],
)
def test_any_cut_into_blocks_finds_the_same_columns(row, device):
    row = row.to(device)[None]
    wanted, wanted_p = head_topk_ref(row, 10)
    ids, log_p = head_topk(row, 10, config=SMALL)
    assert torch.equal(ids, wanted)
    assert torch.allclose(log_p, wanted_p, atol=2e-6)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: f"block{config.block}")
def test_every_configuration_gives_the_same_columns(config, device, generator):
    logits = torch.randn(1, 900, generator=generator).half().to(device)
    assert torch.equal(head_topk(logits, 3, config=config)[0], head_topk_ref(logits, 3)[0])


def test_a_row_alone_has_the_same_bits_as_among_others(device, generator):
    logits = torch.randn(2, 100, generator=generator).half().to(device)
    ids, log_p = head_topk(logits, 5, config=SMALL)
    alone = head_topk(logits[1:2], 5, config=SMALL)
    assert torch.equal(alone[0], ids[1:2]) and torch.equal(alone[1], log_p[1:2])


def test_neighbours_in_memory_are_neither_read_nor_written(device):
    buffer = torch.full((4, 100), NAN, dtype=torch.float16, device=device)
    buffer[1:3] = torch.arange(100.0)
    ids = torch.full((4, 3), -7, dtype=torch.int32, device=device)
    log_p = torch.full((4, 3), -7.0, device=device)
    found = head_topk(buffer[1:3], 3, config=SMALL, out=(ids[1:3], log_p[1:3]))
    assert found[0].data_ptr() == ids[1:3].data_ptr()
    assert ids.tolist() == [[-7] * 3, [99, 98, 97], [99, 98, 97], [-7] * 3]
    assert (log_p[[0, 3]] == -7).all() and log_p[1:3].isfinite().all()


@pytest.mark.parametrize("V, block", [(1, 1024), (32768, 1024), (32769, 2048), (128256, 4096)])
def test_a_row_is_cut_into_at_most_32_blocks(V, block):
    assert choose(V).block == block


def test_the_largest_vocabulary_takes_the_largest_block():
    assert choose(MAX_V) == CONFIGS[-1]


def test_what_does_not_fit_is_refused(device):
    good = torch.zeros(2, 8, device=device)
    ids = torch.zeros(2, 3, dtype=torch.int32, device=device)
    for match, logits, k, options in (
        ("logits must be float16 or bfloat16 or float32, got float64", good.double(), 3, {}),
        (r"logits must be \[any, any\], got \[8\]", good[0], 3, {}),
        ("logits must be contiguous", good[:, :4], 3, {}),
        (r"T must be 1\.\.2147483647, got 0", good[:0], 3, {}),
        (r"V must be 1\.\.1048576, got 0", good.new_zeros(2, 0), 1, {}),
        (r"V must be 1\.\.1048576", good.new_zeros(1, 2**20 + 1), 1, {}),
        (r"k must be 1\.\.8, got 9", good, 9, {}),
        (r"k must be 1\.\.8, got 0", good, 0, {}),
        (r"k must be 1\.\.32, got 33", good.new_zeros(1, 64), 33, {}),
        (r"n_known must be 1\.\.8, got 9", good, 3, {"n_known": 9}),
        (r"k must be 1\.\.2, got 3", good, 3, {"n_known": 2}),
        ("token_map must be int32, got int64", good, 3, {"token_map": torch.arange(8)}),
        (r"token_map must be \[8\]", good, 3, {"token_map": torch.arange(7).int()}),
        ("log_p must be float32, got int32", good, 3, {"out": (ids, ids)}),
        (r"ids must be \[2, 2\]", good, 2, {"out": (ids, ids)}),
    ):
        with pytest.raises(ValueError, match=match):
            head_topk(logits, k, **options)
