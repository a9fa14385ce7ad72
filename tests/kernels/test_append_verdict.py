"""`append_verdict`: the text grows, the counters agree, the report says what was emitted."""

import pytest
import torch

from hspec_kernels.append_verdict import append_verdict, append_verdict_ref

BOTH = pytest.mark.parametrize("op", [append_verdict_ref, append_verdict])


def round_of(device, emitted, n_emitted, n_text=3, capacity=8, **changes):
    def ids(values):
        return torch.tensor(values, dtype=torch.int32, device=device)

    return {
        "emitted": ids(emitted),
        "n_emitted": ids([n_emitted]),
        "text": ids([9] * capacity),
        "n_text": ids([n_text]),
        "kv_len": ids([n_text - 1]),
        "agreed": ids([0]),
        "bad": ids([0]),
        "report": ids([-7] * (2 + len(emitted))),
    } | {name: ids(values) for name, values in changes.items()}


@BOTH
def test_emitted_tokens_follow_the_text_and_the_last_one_is_pending(op, device):
    found = round_of(device, [4, 5, -1], 2, bad=[3])
    op(**found)
    assert found["text"].tolist() == [9, 9, 9, 4, 5, 9, 9, 9]
    assert int(found["n_text"]) == 5 and int(found["kv_len"]) == int(found["agreed"]) == 4
    assert found["report"].tolist() == [2, 3, 4, 5, -1]


@BOTH
@pytest.mark.parametrize(
    "path, agreed", [([0, 1, 2], 5), ([0, 1, 3], 4), ([0, 2, 3], 3), ([0, 1, -1], 4)]
)
def test_levels_below_keep_what_runs_along_the_first_nodes(op, path, agreed, device):
    n_emitted = sum(node >= 0 for node in path)
    found = round_of(device, [4, 5, 6], n_emitted, path=path)
    op(**found)
    assert int(found["agreed"]) == agreed


def test_what_does_not_fit_is_refused_and_a_trusted_call_writes_nothing_behind_the_text(device):
    with pytest.raises(ValueError, match=r"n_text must be 0..6, got 7"):
        append_verdict(**round_of(device, [4, 5], 2, n_text=7))
    with pytest.raises(ValueError, match=r"n_emitted must be 0..2, got 3"):
        append_verdict(**round_of(device, [4, 5], 3))
    with pytest.raises(ValueError, match=r"report must be \[4\], got \[5\]"):
        append_verdict(**round_of(device, [4, 5], 2, report=[0] * 5))
    found = round_of(device, [4, 5], 2, n_text=7)
    whole = torch.full((12,), 9, dtype=torch.int32, device=device)
    found["text"] = whole[:8]
    append_verdict(**found, trusted=True)
    assert whole.tolist() == [9] * 7 + [4] + [9] * 4
