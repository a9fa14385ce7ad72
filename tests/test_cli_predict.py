"""`hspec record`, `predict`, `best` and `devices`: what they print, and what they refuse."""

import json
import shutil
from pathlib import Path

import pytest
from tiny import make_zoo

from hspec_lab.acceptance_folder import read_trace
from hspec_lab.cli import main

SHIPPED = Path(__file__).parents[1] / "profiles" / "acceptance" / "zoo"
SHAPES = [
    "--target",
    "shape:llama-3-8b@w4a16-g128",
    "--intermediate",
    "shape:llama-3.2-1b@w4a16-g128",
]
ALLOWED = ["--allow", "model", "scheme"]


def told(capsys, *arguments, code=0):
    assert main(list(map(str, arguments))) == code
    return capsys.readouterr()


@pytest.mark.parametrize("method", ["ar", "eagle2", "chain", "hierspec"])
def test_a_prediction_says_time_request_memory_and_where_all_of_it_comes_from(method, capsys):
    found = told(capsys, "predict", "--method", method)
    blocks = found.out.split("\n\n")[:-1]
    # one for each target whose stages ship, none twice
    firsts = [block.splitlines()[0] for block in blocks]
    assert len(firsts) == 3 == len(set(firsts))
    for block in blocks:
        for words in ("us a token", "x ar (", "first token behind 512", "memory: target", "share"):
            assert words in block
        assert "stages measured" in block and "acceptance replayed" in block
    assert "left out" in found.err and len(found.err) < 300


def test_a_narrow_tree_and_other_sizes_are_heard(capsys):
    trace = SHIPPED / "w8a8-hierspec-w4a16-k8"
    sizes = ["--tree-size", 9, "--depth", 2, "--at-least", 4, "--narrow", 16]
    found = told(capsys, "predict", "--method", "hierspec", "--trace", trace, *sizes)
    assert "Eagle2(tree_size=9, depth=2, top_k=8" in found.out
    assert "at_least=4" in found.out and "tree_size=16" in found.out


def test_a_device_one_does_not_own_is_predicted_with_its_warnings(capsys):
    trace = SHIPPED / "w4a16-hierspec-w4a16-k8"
    asked = ["--device", "a100-80gb", "rtx-3090", "--trace", trace, *SHAPES]
    assert "allow" in told(capsys, "predict", "--method", "chain", *asked, code=2).err
    found = told(capsys, "predict", "--method", "chain", *asked, *ALLOWED).out
    assert found.count("stages roofline") >= 2 and "stands for shape:llama-3-8b" in found
    assert "fits" in found and "NVIDIA GeForce RTX 3090" in found


def test_what_does_not_fit_a_device_is_marked(capsys):
    trace = SHIPPED / "w4a16-eagle2-k8"
    asked = ["--trace", trace, "--target", "shape:llama-3-70b@w4a16-g128", *ALLOWED]
    found = told(capsys, "predict", "--device", "rtx-3090", *asked).out
    assert "NOT on NVIDIA GeForce RTX 3090" in found
    refused = told(capsys, "best", "--device", "rtx-3090", *asked, code=2).err
    assert "no model fits" in refused
    assert "NVIDIA A100 80GB" in told(capsys, "best", "--device", "a100-80gb", *asked).out


def test_best_advises_and_lists_a_short_list_with_ar_first(capsys):
    found = told(capsys, "best", "--trace", SHIPPED / "w4a16-eagle2-k8", "--top", 4)
    assert "do not speculate" in found.out
    rows = found.out.split("shortlist:\n")[1].splitlines()
    assert len(rows) == 5 and rows[1].split()[0] == "ar"
    assert "acceptance replayed, stages measured" in found.out


def test_the_best_of_all_devices_is_one_line_each(capsys):
    trace = SHIPPED / "w4a16-eagle2-k8"
    asked = ["--device", "all", "--trace", trace, "--target", "shape:llama-3-8b@w4a16-g128"]
    found = told(capsys, "best", *asked, *ALLOWED).out
    known = [line.split("  ")[0].strip() for line in told(capsys, "devices").out.splitlines()]
    assert len(known) == 10
    assert sum("speculate" in line for line in found.split("\n\n")[0].splitlines()) == 10


def test_a_device_of_ones_own_is_a_file(capsys, tmp_path):
    source = Path(__file__).parents[1] / "profiles" / "devices" / "h100.toml"
    mine = tmp_path / "mine.toml"
    mine.write_text(source.read_text().replace("NVIDIA H100 80GB SXM", "My card"))
    trace = SHIPPED / "w4a16-eagle2-k8"
    assert "My card" in told(capsys, "predict", "--device", mine, "--trace", trace).out
    assert "My card" in told(capsys, "best", "--device", mine, "--trace", trace).out


def test_runs_of_a_store_stand_beside_their_predictions(capsys, tmp_path):
    runs = Path(__file__).parents[1] / "profiles" / "runs" / "zoo"
    shutil.copytree(runs / "chain", tmp_path / "store" / "chain")
    found = told(capsys, "predict", "--against", tmp_path / "store").out
    assert "chain" in found and "runs compared in ar steps" in found


def test_a_recorded_trace_is_priced_without_another_option(capsys, tmp_path):
    out = tmp_path / "trace"
    words = ["record", "--n-prompts", 1, "--max-new-tokens", 6, "--out", out]
    assert "6 positions" in told(capsys, *words).out
    assert "us a token" in told(capsys, "predict", "--trace", out, "--depth", 2).out


def test_a_hierarchy_of_ones_own_models_is_recorded(capsys, tmp_path):
    zoo = make_zoo(tmp_path / "zoo")
    prompts = tmp_path / "prompts.json"
    prompts.write_text(json.dumps(["0123", "ABC"]))
    words = ["record", "--target", zoo / "target", "--method", "hierspec", "--depth", 2,
             "--top-k", 2, "--intermediate", zoo / "middle", "--at-least", 3,
             "--prompts", prompts, "--max-new-tokens", 9, "--out", tmp_path / "trace"]  # fmt: skip
    assert "18 positions" in told(capsys, *words).out
    assert read_trace(tmp_path / "trace").config.row_invariant
    wrong = told(capsys, *words[:-3], 12, *words[-2:], code=2).err
    assert "max_new_tokens" in wrong and "give another folder" in wrong


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["predict", "--trace", "nowhere"], "no acceptance trace"),
        (["predict", "--costs", "nowhere"], "nowhere"),
        (["predict", "--device", "h999"], "a100-80gb"),
        (["predict", "--device", "h100", "--costs", "x"], "give one of them"),
        (["predict", "--target", "zoo:target"], "belong to --device"),
        (["predict", "--calibrate", "x"], "belong to --device"),
        (["predict", "--prompt-tokens", "0"], "--prompt-tokens must be >= 1"),
        (["predict", "--context", "-5"], "--context must be >= 0"),
        (["predict", "--depth", "0"], "depth must be"),
        (["predict", "--depth", "9"], "beyond 8"),
        (["predict", "--against", "nowhere"], "no runs in nowhere"),
        (["best", "--top", "0"], "--top must be"),
        (["best", "--confirm", "--device", "h100"], "--confirm runs here"),
        (["best", "--device", "all", "--calibrate", "x"], "name that device alone"),
        (["record", "--out", "x", "--max-new-tokens", "1"], "--max-new-tokens must be >= 2"),
        (["record", "--out", "x", "--target", "zoo:nope"], "nope"),
        (["record", "--out", "x", "--device", "tpu"], "tpu"),
        (["measure", "--in-rounds", "--out", "x"], "name at least one"),
        (["measure", "--in-rounds", "--shape", "llama-3-8b", "--out", "x"], "leave out --shape"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_told_in_one_line(arguments, words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = told(capsys, *arguments, code=2)
    assert words in found.err and "Traceback" not in found.err
    assert not list(tmp_path.iterdir())


def test_curves_of_a_cpu_calibrate_no_gpu(capsys):
    costs = SHIPPED.parents[1] / "costs" / "zoo"
    found = told(capsys, "predict", "--device", "h100", "--calibrate", costs, code=2)
    assert "cannot calibrate" in found.err


def test_greedy_and_drawn_texts_are_not_searched_together(capsys):
    traces = [SHIPPED / name for name in ("fp32-eagle2-k8", "fp32-eagle2-k8-t0.8")]
    assert "do not compare" in told(capsys, "best", "--trace", *traces, code=2).err
    alone = told(capsys, "predict", "--trace", traces[1]).out
    assert "temperature 0.8" in alone


def test_a_head_without_what_it_needs_and_tables_ahead_of_it_are_no_tracebacks(capsys, tmp_path):
    shutil.copytree(SHIPPED / "fp32-eagle2-k8", tmp_path / "t")
    path = tmp_path / "t" / "trace.json"
    head = json.loads(path.read_text())
    # stopped between two files: the tables know one prompt more
    for name in ("n_positions", "prompt_tokens"):
        head[name] = head[name][:-1]
    path.write_text(json.dumps(head))
    assert read_trace(tmp_path / "t").text["prompt"].nunique() == 28
    assert "us a token" in told(capsys, "predict", "--trace", tmp_path / "t").out
    path.write_text('{"schema": 1}')
    assert "lacks config" in told(capsys, "predict", "--trace", tmp_path / "t", code=2).err
