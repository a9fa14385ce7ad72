"""Sums over rows against rows kept whole; calibration text cut into windows."""

import pytest
import torch
from small import small, text

from hspec_lab import zoo
from hspec_lab.model.shelf import OWN_TEXT
from hspec_lab.quantize.calibration import SAMPLE_ROWS, InputSums, output_error
from hspec_lab.quantize.text import Calibration
from hspec_lab.text import load_tokenizer


def rows(n: int, C: int = 24) -> torch.Tensor:
    x = torch.randn(n, C, generator=torch.Generator().manual_seed(n))
    return x * torch.arange(1, C + 1) + 0.5


def gathered(x: torch.Tensor, parts: list[int]):
    sums = InputSums(len(x))
    for part in x.split(parts):
        sums.add(part)
    return sums.result()


@pytest.mark.parametrize("parts", [[1000], [1, 999], [300, 300, 400], [7] * 142 + [6]])
def test_sums_are_those_of_all_rows_however_they_come(parts):
    x = rows(1000)
    found = gathered(x, parts)
    torch.testing.assert_close(found.hessian, x.T @ x / 1000)
    torch.testing.assert_close(found.mean_abs, x.abs().mean(0))
    assert torch.equal(found.absmax, x.abs().amax(0)) and found.n == 1000
    # a sample spread evenly, the same however rows come
    assert torch.equal(found.rows, x[:: 1000 // SAMPLE_ROWS][:SAMPLE_ROWS])


@pytest.mark.parametrize("n", [1, 100, 256, 257, 511, 512, 5000])
def test_the_sample_is_of_the_whole_text_and_no_larger_than_said(n):
    x = rows(n)
    found = gathered(x, [-(-n // 3), n - -(-n // 3)] if n > 1 else [n]).rows
    assert min(n, SAMPLE_ROWS) == len(found)
    places = [int((x == row).all(1).nonzero()[0]) for row in found]
    assert places == sorted(set(places)) and places[-1] >= (n - 1) // 2


def test_rows_that_change_later_do_not_change_what_was_gathered():
    x = rows(40)
    wanted = x.clone()
    sums = InputSums(40)
    sums.add(x)
    x.zero_()
    assert torch.equal(sums.result().rows, wanted)


def test_scaled_inputs_are_those_of_scaled_rows():
    x, s = rows(500), torch.linspace(0.1, 7, 24)
    found, wanted = gathered(x, [500]).scaled(s), gathered(x / s, [500])
    for name in ("hessian", "absmax", "mean_abs", "rows"):
        torch.testing.assert_close(getattr(found, name), getattr(wanted, name))
    assert found.n == wanted.n


def test_the_output_error_is_that_of_products():
    generator = torch.Generator().manual_seed(2)
    x, weight = rows(300), torch.randn(10, 24, generator=generator)
    other = weight + 0.1 * torch.randn(10, 24, generator=generator)
    wanted = ((x @ other.T - x @ weight.T).square().sum() / (x @ weight.T).square().sum()).item()
    assert output_error(weight, other, gathered(x, [300]).hessian) == pytest.approx(
        wanted, rel=1e-4
    )
    assert output_error(weight, weight, gathered(x, [300]).hessian) == 0


def test_a_product_of_zeros_can_lose_nothing():
    zeros, H = torch.zeros(3, 4), torch.eye(4)
    assert output_error(zeros, zeros, H) == 0
    assert output_error(zeros, torch.ones(3, 4), H) == float("inf")
    assert output_error(torch.ones(3, 4), zeros, torch.zeros(4, 4)) == 0


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return load_tokenizer(small(tmp_path_factory.mktemp("text") / "m"))


def test_windows_are_of_one_length_and_lie_behind_one_another(tokenizer):
    one, other = text(100), text(90, 1)
    found = Calibration((one, other), length=32).windows(tokenizer, 64)
    ids = [ord(letter) - 48 for letter in one + other]
    assert found == [ids[start : start + 32] for start in range(0, 160, 32)]
    # a model's context is a limit, too
    assert {len(window) for window in Calibration((one,)).windows(tokenizer, 16)} == {16}


@pytest.mark.parametrize("n_windows,sequences", [(40, 4), (96, 48), (8, 8), (3, 8)])
def test_windows_are_spread_over_all_the_text(tokenizer, n_windows, sequences):
    ids = [ord(letter) - 48 for letter in text(n_windows * 16)]
    found = Calibration((text(n_windows * 16),), sequences=sequences, length=16)
    starts = [window_start(ids, window) for window in found.windows(tokenizer, 64)]
    assert len(starts) == min(n_windows, sequences)
    assert starts == sorted(set(starts)) and starts[0] == 0
    assert starts[-1] // 16 >= n_windows - max(1, n_windows // sequences) - 1


def window_start(ids: list[int], window: list[int]) -> int:
    return next(at for at in range(len(ids)) if ids[at : at + len(window)] == window)


def test_a_name_tells_texts_and_windows_apart():
    given = [
        Calibration(),
        Calibration(("a", "b")),
        Calibration(("b", "a")),
        Calibration(("ab",)),
        Calibration(("a\0b",), sequences=47),
        Calibration(length=256),
        Calibration(sequences=47),
    ]
    assert len({calibration.name for calibration in given}) == len(given)
    assert Calibration().name == OWN_TEXT == Calibration((), 48, 512).name


def test_the_zoo_s_calibration_and_evaluation_texts_are_apart():
    parts = [set(zoo.held_out(part)) for part in ("calibration", "evaluation")]
    assert all(parts) and not parts[0] & parts[1]


def test_files_are_read_in_the_order_given(tmp_path):
    for name in ("b", "a"):
        (tmp_path / name).write_text(f"text {name} é", encoding="utf-8")
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\x00")
    found = Calibration.of_files([tmp_path / "b", tmp_path / "a"], sequences=3)
    assert found == Calibration(("text b é", "text a é"), sequences=3)
    with pytest.raises(ValueError, match="bytes: cannot be read as text"):
        Calibration.of_files([tmp_path / "bytes"])
