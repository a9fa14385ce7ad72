"""`replay_verdict`: recorded lengths come in order and never exceed what was proposed."""

import pytest
import torch

from hspec_kernels.replay_verdict import replay_verdict, replay_verdict_ref


@pytest.mark.parametrize("op", [replay_verdict_ref, replay_verdict])
def test_lengths_come_in_order_round_and_round(op, device):
    def ids(values):
        return torch.tensor(values, dtype=torch.int32, device=device)

    tokens, best = ids([7, 1, 2, 3, 4, 5]), ids([10, 11, 12, 13, 14, 15])
    lengths, cursor = ids([2, 9, 1]), ids([0])
    found = []
    for _ in range(4):
        path, n_path, emitted = op(tokens, best, lengths, cursor, ids([5]), 2)
        n = int(n_path)
        assert path[n:].tolist() == emitted[n:].tolist() == [-1] * (6 - n)
        found.append((path[:n].tolist(), emitted[:n].tolist()))
    assert found == [
        ([0, 2], [2, 12]),
        ([0, 2, 4], [2, 4, 14]),  # nine do not fit five nodes
        ([0], [10]),
        ([0, 2], [2, 12]),
    ]
    assert cursor.tolist() == [1]


@pytest.mark.parametrize("op", [replay_verdict_ref, replay_verdict])
def test_a_negative_length_ends_with_a_rival(op, device):
    def ids(values):
        return torch.tensor(values, dtype=torch.int32, device=device)

    tokens, best = ids([7, 1, 2, 3, 4]), ids([10, 11, 12, 13, 14])
    path, n_path, emitted = op(tokens, best, ids([-3]), ids([0]), ids([5]))
    assert path.tolist() == [0, 1, 3, -1, -1] and int(n_path) == 3
    assert emitted.tolist() == [1, 3, 13, -1, -1]


def test_an_empty_list_is_refused(device):
    ids = torch.zeros(3, dtype=torch.int32, device=device)
    with pytest.raises(ValueError, match=r"N must be 1..16777216, got 0"):
        replay_verdict(ids, ids, ids[:0], ids[:1].clone(), ids[:1].clone())
