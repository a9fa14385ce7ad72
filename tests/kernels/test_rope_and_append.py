"""Rotating and storing: quarter turns by hand, int8 steps, what must not be written."""

import pytest
import torch

from hspec_kernels.rope_and_append import rope_and_append, rope_and_append_ref

BOTH = pytest.mark.parametrize("append", [rope_and_append_ref, rope_and_append])
HALF = torch.float16


def ints(*values: int, device: str) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32, device=device)


def quarter_turns(positions: int, device: str) -> dict:
    """Position p turns every pair by p quarters."""
    turn = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])[
        torch.arange(positions) % 4
    ]
    cos, sin = turn[:, :, None].expand(-1, -1, 8).unbind(1)
    return {"cos": cos.contiguous().to(device), "sin": sin.contiguous().to(device)}


def given_rows(generator, device, T=3, H=3, K=2, D=16, capacity=8, kv_len=2, **options) -> dict:
    """Normal rows of one path and an empty cache."""
    rows = torch.randn(T, (H + 2 * K) * D, generator=generator)
    return {
        "qkv": rows.to(HALF).to(device),
        "depths": torch.arange(T, dtype=torch.int32, device=device),
        "kv": torch.zeros(capacity, 2 * K, D, dtype=HALF, device=device),
        "kv_len": ints(kv_len, device=device),
        **quarter_turns(capacity, device),
    } | options


def as_int8(given: dict) -> dict:
    """The same with an int8 cache."""
    kv = given["kv"].to(torch.int8)
    return given | {"kv": kv, "kv_scale": torch.zeros(kv.shape[:2], dtype=HALF, device=kv.device)}


@BOTH
def test_pairs_turn_by_prefix_plus_depth_and_values_do_not(append, device):
    # head h of row t holds pairs (8 t + h, 100); a root and two children behind one stored row
    first = 8 * torch.arange(3)[:, None] + torch.arange(5)  # of 3 queries, a key, a value
    pairs = torch.stack([first, torch.full_like(first, 100)], dim=-1)  # [T, heads, 2]
    qkv = pairs[:, :, None].expand(-1, -1, 8, -1).reshape(3, -1).to(HALF).to(device)
    kv = torch.full((6, 2, 16), 7.0, dtype=HALF, device=device)
    depths, kv_len = ints(0, 1, 1, device=device), ints(1, device=device)
    q = append(qkv, **quarter_turns(6, device), depths=depths, kv=kv, kv_len=kv_len)
    assert q[0, :, :2].tolist() == [[-100, 0], [-100, 1], [-100, 2]]  # one quarter
    assert q[1, :, :2].tolist() == [[-8, -100], [-9, -100], [-10, -100]]  # two
    assert q[2, :, :2].tolist() == [[-16, -100], [-17, -100], [-18, -100]]  # two as well
    assert kv[:, 0, :2].tolist() == [[7, 7], [-100, 3], [-11, -100], [-19, -100], [7, 7], [7, 7]]
    assert kv[:, 1, :2].tolist() == [[7, 7], [4, 100], [12, 100], [20, 100], [7, 7], [7, 7]]
    for x in (q, kv):  # every pair as the first
        assert torch.equal(x, x[:, :, :2].repeat(1, 1, 8))


@BOTH
@pytest.mark.parametrize("dtype", [HALF, torch.float32], ids=str)
def test_heads_are_normalised_before_they_turn(append, dtype, device):
    # rms 5 of (1, 7), whatever the head's size; weights 5 and 10
    pair = torch.tensor([1.0, 7.0]).repeat(8)
    qkv = torch.cat([pair, 2 * pair, 8 * pair, pair]).to(HALF)[None].to(device)
    kv = torch.zeros(4, 2, 16, dtype=HALF, device=device)
    norms = {"q_norm": torch.full((16,), 5.0), "k_norm": torch.tensor([10.0, 5.0]).repeat(8)}
    norms = {name: weight.to(dtype).to(device) for name, weight in norms.items()}
    depths, kv_len = ints(0, device=device), ints(1, device=device)
    table = quarter_turns(4, device)
    q = append(qkv, **table, depths=depths, kv=kv, kv_len=kv_len, **norms)
    assert q[0, :, :2].tolist() == [[-7, 1], [-7, 1]]
    assert kv[1, :, :2].tolist() == [[-7, 2], [1, 7]]  # the value is as it was


@BOTH
def test_eps_is_added_to_the_mean_square(append, device):
    qkv = torch.ones(1, 48, dtype=HALF, device=device)
    kv = torch.zeros(1, 2, 16, dtype=HALF, device=device)
    one, table = torch.ones(16, device=device), quarter_turns(1, device)
    zero = ints(0, device=device)
    q = append(qkv, **table, depths=zero, kv=kv, kv_len=zero, eps=3.0, q_norm=one, k_norm=one)
    assert (q == 0.5).all() and (kv[0, 0] == 0.5).all() and (kv[0, 1] == 1).all()


@BOTH
def test_an_int8_head_is_stored_in_steps_of_its_largest_over_127(append, device):
    key = torch.tensor([-127.0, 2.5, 3.5, -2.5, 0.0, 126.4]).repeat_interleave(2).repeat(2)[:16]
    qkv = torch.cat([torch.ones(16), 0.25 * key, torch.zeros(16)]).to(HALF)[None].to(device)
    given = as_int8(given_rows(torch.Generator(), device, T=1, H=1, K=1, kv_len=4))
    append(**(given | {"qkv": qkv}))  # position 4: a full turn
    stored = [-127, -127, 2, 2, 4, 4, -2, -2, 0, 0, 126, 126, -127, -127, 2, 2]  # ties to even
    assert given["kv"][4].tolist() == [stored, [0] * 16]
    assert given["kv_scale"][4].tolist() == [0.25, 0.0]
    assert not given["kv"][[0, 1, 2, 3, 5, 6, 7]].any() and not given["kv_scale"][:4].any()


@BOTH
def test_a_head_too_large_for_its_scale_saturates(append, device):
    given = as_int8(given_rows(torch.Generator(), device, T=1, H=1, K=1, kv_len=0))
    qkv = torch.full((1, 48), 1e30, dtype=torch.bfloat16, device=device)
    qkv[:, :16], qkv[:, 32:] = 0, -1e30
    append(**(given | {"qkv": qkv}))
    assert (given["kv"][0].T == torch.tensor([127, -127], device=device)).all()
    assert (given["kv_scale"][0] == 65504).all()


@pytest.mark.parametrize("int8", [False, True], ids=["half", "int8"])
def test_a_row_has_the_same_bits_alone(int8, device, generator):
    given = given_rows(generator, device, q_norm=torch.rand(16, device=device))
    given["k_norm"] = given["q_norm"] + 1
    together, alone = given, given | {"kv": given["kv"].clone()}
    if int8:
        together, alone = as_int8(given), as_int8(given)
    q = rope_and_append(**together)
    for t in range(3):  # depth 0 behind kv_len + t is depth t behind kv_len
        row = {"qkv": given["qkv"][t : t + 1], "kv_len": given["kv_len"] + t}
        assert torch.equal(
            rope_and_append(**(alone | row | {"depths": ints(0, device=device)})), q[t : t + 1]
        )
    assert torch.equal(alone["kv"], together["kv"])
    if int8:
        assert torch.equal(alone["kv_scale"], together["kv_scale"]) and together["kv_scale"].any()


@pytest.mark.parametrize("int8", [False, True], ids=["half", "int8"])
def test_nothing_is_stored_outside_the_cache(int8, device, generator):
    given = given_rows(generator, device, capacity=4, kv_len=3) | quarter_turns(8, device)
    given = as_int8(given) if int8 else given
    large = {name: torch.full_like(given[name], 7).repeat(3, *[1] * (given[name].ndim - 1))
             for name in ("kv", "kv_scale") if name in given}  # fmt: skip
    cache = {name: tensor[4:8] for name, tensor in large.items()}
    for kv_len in (3, -1):  # rows 4 and 5 do not exist, nor does row -1
        given["kv_len"].fill_(kv_len)
        rope_and_append(**(given | cache), trusted=True)
        for tensor in large.values():
            changed = (tensor != 7).flatten(1).any(dim=1)
            assert changed.nonzero().flatten().tolist() == ([7] if kv_len == 3 else [4, 5, 7])


def test_neighbours_of_rows_tables_and_results_stay_out(device, generator):
    given = given_rows(generator, device)
    wanted = rope_and_append_ref(**(given | {"kv": given["kv"].clone()}))
    apart = {
        name: torch.full_like(given[name], torch.nan).repeat(3, 1) for name in ("qkv", "cos", "sin")
    }
    for name, tensor in apart.items():
        n = given[name].shape[0]
        tensor[n : 2 * n] = given[name]
        apart[name] = tensor[n : 2 * n]
    out = torch.full((5, 3, 16), 7.0, dtype=HALF, device=device)
    q = rope_and_append(**(given | apart), out=out[1:4])
    assert torch.equal(q, wanted) and q.data_ptr() == out[1].data_ptr()
    assert (out[[0, 4]] == 7).all() and given["kv"].isfinite().all()


def test_beyond_the_table_queries_and_keys_are_zeros(device, generator):
    given = given_rows(generator, device)
    tables = {name: torch.full((6, 8), torch.nan, device=device) for name in ("cos", "sin")}
    for name, table in tables.items():
        table[:3] = given[name][:3]  # positions 0..2 of 2..4
    given |= {name: table[:3] for name, table in tables.items()}
    q = rope_and_append(**given, trusted=True)
    assert q[0].any() and not q[1:].any()
    assert given["kv"][2, :2].any() and not given["kv"][3:5, :2].any()
    assert given["kv"][3:5, 2:].any()  # values are stored


@pytest.mark.parametrize(
    "change, message",
    [
        ({"qkv": torch.zeros(3, 112)}, "qkv must be float16 or bfloat16, got float32"),
        ({"qkv": torch.zeros(0, 112, dtype=HALF)}, "T must be 1..1048576, got 0"),
        ({"qkv": torch.zeros(3, 64, dtype=HALF)}, r"qkv must be .*got \[3, 64\] and \[8, 4, 16\]"),
        ({"qkv": torch.zeros(3, 120, dtype=HALF)}, r"qkv must be .*got \[3, 120\]"),
        ({"qkv": torch.zeros(112, 3, dtype=HALF).T}, "qkv must be contiguous"),
        ({"kv": torch.zeros(8, 5, 16, dtype=HALF)}, r"kv .*got .*\[8, 5, 16\]"),
        ({"kv": torch.zeros(8, 0, 16, dtype=HALF)}, r"kv .*got .*\[8, 0, 16\]"),
        ({"kv": torch.zeros(8, 4, 12, dtype=HALF)}, r"D one of .*\[8, 4, 12\]"),
        ({"kv": torch.zeros(8, 4, 16)}, "kv must be float16 or int8, got float32"),
        ({"kv": torch.zeros(8, 4, 16, dtype=torch.int8)}, "kv_scale goes with int8"),
        ({"kv_scale": torch.zeros(8, 4, dtype=HALF)}, "kv_scale goes with int8"),
        ({"cos": torch.zeros(8, 16)}, r"cos must be \[any, 8\]"),
        ({"cos": torch.zeros(8, 8, dtype=HALF)}, "cos must be float32, got float16"),
        ({"sin": torch.zeros(7, 8)}, r"sin must be \[8, 8\], got \[7, 8\]"),
        ({"depths": torch.zeros(4, dtype=torch.int32)}, r"depths must be \[3\], got \[4\]"),
        ({"depths": torch.zeros(3, dtype=torch.int64)}, "depths must be int32, got int64"),
        ({"kv_len": torch.zeros(1)}, "kv_len must be int32"),
        ({"q_norm": torch.zeros(16)}, "q_norm and k_norm must come together"),
        ({"q_norm": torch.zeros(8), "k_norm": torch.zeros(8)}, r"q_norm must be \[16\], got \[8\]"),
        (
            {"q_norm": torch.zeros(16), "k_norm": torch.zeros(16, dtype=HALF)},
            "k_norm must be float32",
        ),
        ({"out": torch.zeros(3, 2, 16, dtype=HALF)}, r"out must be \[3, 3, 16\]"),
    ],
)
def test_what_does_not_fit_is_refused(change, message, device, generator):
    change = {name: tensor.to(device) for name, tensor in change.items()}
    with pytest.raises(ValueError, match=message):
        rope_and_append(**(given_rows(generator, device) | change))


def test_scales_of_another_shape_are_refused(device, generator):
    given = as_int8(given_rows(generator, device))
    given["kv_scale"] = given["kv_scale"][:7]
    with pytest.raises(ValueError, match=r"kv_scale must be \[8, 4\], got \[7, 4\]"):
        rope_and_append(**given)
