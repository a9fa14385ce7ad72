"""Committing a path: rows by number, moves that overlap, what must stay as it was."""

import pytest
import torch

from hspec_kernels.kv_commit import kv_commit, kv_commit_ref

BOTH = pytest.mark.parametrize("commit", [kv_commit_ref, kv_commit])


def ints(*values: int, device: str) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32, device=device)


def numbered(device: str, layers: int = 2, capacity: int = 10, dtype=torch.float16) -> torch.Tensor:
    """A cache whose row r of layer l holds 10 * l + r."""
    rows = torch.arange(capacity) + 10 * torch.arange(layers)[:, None]
    return rows[:, :, None, None].expand(-1, -1, 2, 16).to(dtype).contiguous().to(device)


@BOTH
@pytest.mark.parametrize(
    "path, n_path, rows",
    [
        pytest.param([0, 2, 5], 3, [0, 1, 2, 3, 5, 8, 6, 7, 8, 9], id="holes-are-closed"),
        pytest.param([0, 2, 5], 2, [0, 1, 2, 3, 5, 5, 6, 7, 8, 9], id="only-n_path-of-them"),
        pytest.param([0, 1, 2], 3, list(range(10)), id="a-chain-lies-where-it-should"),
        pytest.param([3, 0, 1, 2], 4, [0, 1, 2, 6, 3, 4, 5, 7, 8, 9], id="sources-are-targets"),
        pytest.param([1, 1, 0], 3, [0, 1, 2, 4, 4, 3, 6, 7, 8, 9], id="a-row-twice"),
        pytest.param([4], 0, list(range(10)), id="nothing"),
        pytest.param([4, 5], 7, [0, 1, 2, 7, 8, 5, 6, 7, 8, 9], id="n_path-beyond-P"),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float16, torch.int8], ids=str)
def test_accepted_rows_are_moved_together(commit, path, n_path, rows, dtype, device):
    storage, kv_len = numbered(device, dtype=dtype), ints(3, device=device)
    # behind the path's end nothing counts, which only a trusted call can ask for
    options = {"trusted": n_path > len(path)} if commit is kv_commit else {}
    commit(storage, ints(*path, device=device), ints(n_path, device=device), kv_len, **options)
    wanted = torch.tensor(rows) + torch.tensor([[0], [10]])
    assert torch.equal(storage[:, :, 0, 0].int().cpu(), wanted.int())
    assert (storage == storage[:, :, :1, :1]).all()
    assert kv_len.tolist() == [3 + min(n_path, len(path))]


@BOTH
def test_scales_move_with_their_rows(commit, device):
    storage, kv_len = numbered(device, dtype=torch.int8), ints(3, device=device)
    scale = storage[..., 0].to(torch.float16).contiguous()  # [2, 10, 2]
    path, n_path = ints(1, 3, device=device), ints(2, device=device)
    commit(storage, path, n_path, kv_len, kv_scale=scale)
    assert torch.equal(scale, storage[..., 0].to(torch.float16)) and scale[0, 4, 0] == 6
    assert kv_len.tolist() == [5]  # once, not once a tensor


def test_any_bits_are_moved_unchanged(device):
    # NaN with a payload, which a floating-point copy could make quiet
    storage = torch.zeros(1, 4, 2, 16, dtype=torch.int16, device=device)
    storage[0, 2] = 0x7C01
    kv_len = ints(0, device=device)
    kv_commit(storage.view(torch.float16), ints(2, device=device), ints(1, device=device), kv_len)
    assert (storage[0, 0] == 0x7C01).all()


@pytest.mark.parametrize(
    "path, rows",
    [
        pytest.param([4, 0], [18, 18], id="a-source-beyond"),  # row 12 does not exist
        pytest.param([1, 0, 0], [19, 18], id="a-target-beyond"),  # nor does row 10
        pytest.param([-9, 0], [18, 18], id="a-source-before"),  # nor row -1
    ],
)
def test_nothing_outside_the_cache_is_written_or_read(path, rows, device):
    large = numbered(device, layers=3)
    before, cache = large.clone(), large[1:2]
    n_path, kv_len = ints(len(path), device=device), ints(8, device=device)
    kv_commit(cache, ints(*path, device=device), n_path, kv_len, trusted=True)
    assert torch.equal(large[[0, 2]], before[[0, 2]])
    assert cache[0, :, 0, 0].tolist() == [*range(10, 18), *rows]


def test_layers_lie_further_apart_than_a_row_number_says(device, generator):
    # layer 1 begins at word capacity * W, not at the rows that count
    storage = torch.randn(2, 100, 2, 16, generator=generator).half().to(device)
    wanted = storage.clone()
    wanted[:, 50] = wanted[:, 99]
    kv_commit(storage, ints(49, device=device), ints(1, device=device), ints(50, device=device))
    assert torch.equal(storage, wanted)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"storage": torch.zeros(2, 10, 32)}, r"storage must be \[any, any, any, any\]"),
        ({"storage": torch.zeros(2, 10, 16, 2).mT}, "storage must be contiguous"),
        (
            {"storage": torch.zeros(2, 10, 2, 3, dtype=torch.int8)},
            r"storage must be a multiple of 4 bytes, got \[6\]",
        ),
        ({"storage": torch.zeros(2, 10, 2, 0)}, "storage must be a multiple of 4 bytes"),
        ({"path": torch.zeros(65, dtype=torch.int32)}, "P must be 1..64, got 65"),
        ({"path": torch.zeros(0, dtype=torch.int32)}, "P must be 1..64, got 0"),
        ({"path": torch.zeros(2, dtype=torch.int64)}, "path must be int32, got int64"),
        ({"n_path": torch.zeros(2, dtype=torch.int32)}, r"n_path must be \[1\], got \[2\]"),
        ({"kv_len": torch.zeros(1, dtype=torch.int64)}, "kv_len must be int32, got int64"),
        ({"kv_scale": torch.zeros(2, 9, 2)}, r"kv_scale must be \[2, 10, 2\]"),
        ({"kv_scale": torch.zeros(2, 10, 2, dtype=torch.int8)}, "kv_scale must be a multiple of 4"),
    ],
)
def test_what_does_not_fit_is_refused(change, message, device):
    one = ints(1, device=device)
    given = {"storage": numbered(device), "path": ints(0, 2, device=device), "n_path": one}
    change = {name: tensor.to(device) for name, tensor in change.items()}
    with pytest.raises(ValueError, match=message):
        kv_commit(**(given | {"kv_len": one.clone()} | change))
