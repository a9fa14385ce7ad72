"""The command: bad input ends in one line and exit code 2, text streams, runs are exported."""

import io
import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_decode import spell
from test_demo import PROMPTS, make_zoo
from tiny import make_head, make_model

from hspec_lab import cli, zoo
from hspec_lab.config import Config, Eagle2, Refine, as_dict
from hspec_lab.lab import Run, open_store
from hspec_lab.options import read_prompts

TREE = ["--tree-size", "6", "--depth", "2", "--top-k", "3"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A zoo, and models beside it with something wrong about each."""
    root = make_zoo(tmp_path_factory.mktemp("zoo"))
    sizes = {"hidden_size": 128, "intermediate_size": 128, "vocab_size": 32}
    for name in ("truncated", "pickle", "nan", "nan-small", "gpt2"):
        spell(make_model(root / name, scale=0.05, num_hidden_layers=1, **sizes))
    whole = (root / "truncated" / "model.safetensors").read_bytes()
    (root / "truncated" / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    (root / "pickle" / "model.safetensors").rename(root / "pickle" / "pytorch_model.bin")
    for name in ("nan", "nan-small"):
        tensors = load_file(root / name / "model.safetensors")
        tensors["model.norm.weight"][:] = torch.nan
        save_file(tensors, root / name / "model.safetensors")
    fields = json.loads((root / "gpt2" / "config.json").read_text())
    fields["architectures"] = ["GPT2LMHeadModel"]
    (root / "gpt2" / "config.json").write_text(json.dumps(fields))
    other = make_model(root / "other-words", scale=0.05, hidden_size=128, vocab_size=40)
    make_head(root / "other-words-eagle2", other)
    (root / "list.json").write_text("[1, 2]")
    (root / "broken.json").write_text('["a",')
    (root / "blank.txt").write_text("\n \n\n")
    return root


@pytest.fixture
def here(made, monkeypatch, tmp_path):
    monkeypatch.setattr(zoo, "ROOT", made)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HSPEC_STORE", "runs")
    return made


def run(*words, tokens="6"):
    return cli.main(["run", "--threads", "1", "--max-new-tokens", tokens, *words])


ASK = ["--prompt", "0123"]
BAD = {
    "missing checkpoint": ([*ASK, "--target", "{}/nowhere"], "no such folder"),
    "missing zoo model": ([*ASK, "--target", "zoo:giant"], "the zoo has no 'giant'"),
    "truncated checkpoint": ([*ASK, "--target", "{}/truncated"], "truncated"),
    "truncated intermediate": ([*ASK, "--intermediate", "{}/truncated"], "truncated"),
    "pickle": ([*ASK, "--target", "{}/pickle"], "a pickle"),
    "architecture": ([*ASK, "--target", "{}/gpt2"], "GPT2LMHeadModel is not supported; supported"),
    "tokenizers": ([*ASK, "--method", "chain", "--intermediate", "{}/other-words"], "differ"),
    "head of another model": (
        [*ASK, "--method", "eagle2", "--head", "{}/other-words-eagle2"],
        "a head for hidden size",
    ),
    "no head": ([*ASK, "--method", "eagle2", "--target", "{}/nan"], "nan-eagle2: no such folder"),
    "tree size 0": ([*ASK, "--tree-size", "0"], "tree_size must be 1..1024, got 0"),
    "tree size 1025": ([*ASK, "--tree-size", "1025"], "tree_size must be 1..1024, got 1025"),
    "tree size with ar": ([*ASK, "--method", "ar", "--tree-size", "0"], "tree_size must be"),
    "depth 0": ([*ASK, "--method", "eagle2", "--depth", "0"], "depth must be 1..64, got 0"),
    "a narrow tree of 0": ([*ASK, "--narrow", "0"], "tree_size must be"),
    "draft length 0": ([*ASK, "--method", "chain", "--draft-len", "0"], "draft_len must be"),
    "draft length": ([*ASK, "--method", "chain", "--draft-len", "500"], "beyond the cache"),
    "at least": ([*ASK, "--at-least", "500"], "beyond the cache"),
    "long prompt": (["--prompt", "01" * 200], "exceed the context"),
    "NaN logits": ([*ASK, "--method", "ar", "--target", "{}/nan"], "NaN in the logits"),
    "NaN logits at 8 bits": ([*ASK, "--method", "ar", "--target", "{}/nan@w8a8"], "NaN in"),
    "NaN of the drafter": (
        [*ASK, "--method", "chain", "--intermediate", "{}/nan-small"],
        "NaN in the logits",
    ),
    "format": ([*ASK, "--target", "zoo:target@w5"], "w5: weights have 16, 8, 6, 4, 3, 2 bits"),
    "method": ([*ASK, "--method", "magic"], "invalid choice: 'magic'"),
    "no prompt": ([], "no prompt: give --prompt"),
    "both prompts": ([*ASK, "--prompts", "x.txt"], "not both"),
    "empty prompt": (["--prompt", ""], "the prompt is empty"),
    "no prompt file": (["--prompts", "x.txt"], "x.txt: No such file"),
    "blank prompt file": (["--prompts", "{}/blank.txt"], "no prompt in it"),
    "broken prompt file": (["--prompts", "{}/broken.json"], "not valid JSON"),
    "numbers for prompts": (["--prompts", "{}/list.json"], "a list of texts"),
    "no number": ([*ASK, "--seed", "one"], "invalid int value"),
    "unknown option": ([*ASK, "--tree", "3"], "unrecognized arguments: --tree"),
    "temperature": ([*ASK, "--temperature", "-1"], "temperature must be"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_told_in_one_line(name, here, tmp_path, capsys):
    words, told = BAD[name]
    assert run(*(word.replace("{}", str(here)) for word in words)) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("hspec: ") and err.count("\n") == 1 and told in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "required: COMMAND"),
        (["dance"], "invalid choice: 'dance'"),
        (["demo", "--formats", "x3"], "unknown format 'x3'"),
        (["demo", "--n-prompts", "99"], "the zoo has 3 prompts"),
        (["export", "x"], "no run 'x'"),
        (["export", "latest", "--to", "pdf"], "invalid choice: 'pdf'"),
        (["report", "latest"], "no runs in runs"),
        (["zoo"], "required: train|export"),
        (["zoo", "train", "--work", "w", "--steps", "target=0"], "STAGE=N, stages target"),
        (["zoo", "export", "--work", "w"], "no such folder"),
        (["run", "--config", "none.json"], "none.json: No such file"),
        (["run", "--config", "-", "--seed", "1", "--tree-size", "4"], "leave out --seed, --tree-"),
    ],
)
def test_bad_commands_are_told_in_one_line(words, told, here, capsys):
    assert cli.main(words) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("hspec: ") and err.count("\n") == 1 and told in err


@pytest.mark.parametrize("text", ["{", "[]", '{"colour": 1}', '{"draft": {"kind": "Chain"}}'])
def test_a_wrong_config_is_told_in_one_line(text, here, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))
    assert cli.main(["run", *ASK, "--config", "-"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


class Seen(io.StringIO):
    """A stdout that remembers what its reader had seen after each flush."""

    def __init__(self):
        super().__init__()
        self.flushed = []

    def flush(self):
        self.flushed.append(self.getvalue())


class Gone(io.StringIO):
    """A stdout whose reader has gone away."""

    def flush(self):
        raise BrokenPipeError


@pytest.mark.parametrize("method", ["ar", "chain", "eagle2", "hierspec"])
def test_the_streamed_text_is_the_stored_text(method, here, capsys, monkeypatch):
    seen = Seen()
    monkeypatch.setattr(sys, "stdout", seen)
    tree = TREE if method in ("eagle2", "hierspec") else []
    assert run(*ASK, "--method", method, *tree, tokens="20") == 0
    (stored,) = open_store("runs")
    assert seen.flushed[-1] == stored.texts[0] + "\n"
    # as it is emitted, not at the end: the prefill's token, then round by round
    emitted = stored.tokens.groupby("round")["piece"].sum().cumsum()
    assert seen.flushed[: len(emitted)] == list(emitted) and len(emitted) > 3
    assert stored.config.method == method and stored.config.prompts == ("0123",)
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and str(stored.folder) in err and "tokens/s (measured" in err


def test_options_that_the_method_does_not_hear_are_noted(here, capsys):
    assert run(*ASK, "--method", "ar", "--depth", "3") == 0
    assert "note: --depth does nothing with the method ar" in capsys.readouterr().err


def test_a_config_comes_back_from_its_json(here, capsys, monkeypatch):
    draft = Refine("zoo:intermediate@w8a8", Eagle2(4, 2, 2), at_least=3)
    config = Config(draft=draft, n_prompts=2, max_new_tokens=5, threads=1)
    monkeypatch.setattr(sys, "stdin", io.StringIO(json.dumps(as_dict(config))))
    assert cli.main(["run", "--config", "-", "--store", "elsewhere"]) == 0
    (stored,) = open_store("elsewhere")
    assert stored.config == config and stored.prompts == PROMPTS[:2]
    assert capsys.readouterr().out == "".join(text + "\n" for text in stored.texts)


def test_prompts_come_from_three_kinds_of_file(tmp_path):
    (tmp_path / "a.txt").write_text("one\n two\n\n \nthree\n")
    (tmp_path / "b.json").write_text('["one\\n two", "three"]')
    (tmp_path / "c.jsonl").write_text('{"prompt": "one\\n two"}\n\n{"prompt": "three", "x": 1}\n')
    for name in ("a.txt", "b.json", "c.jsonl"):
        assert read_prompts(tmp_path / name) == ["one\n two", "three"]


def test_a_run_is_listed_exported_and_shown(here, tmp_path, capsys):
    assert run(*ASK, "--method", "ar") == run(*ASK, "--method", "chain") == 0
    name = next(iter(open_store("runs"))).name
    capsys.readouterr()
    assert cli.main(["runs"]) == 0
    assert name in capsys.readouterr().out
    assert cli.main(["export", "latest", "--out", "trace.json"]) == 0
    assert json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    assert cli.main(["export", name, "--to", "parquet"]) == 0
    assert (tmp_path / f"{name}.tables" / "rounds.parquet").is_file()
    assert cli.main(["report", f"runs/{name}"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"{name}.html"
    rows = (tmp_path / f"{name}.html").read_text().partition('id="rows">')[2]
    (row,) = json.loads(rows.partition("</script>")[0])["rows"]
    assert row["speedup"] > 0  # over the ar run beside it


def test_an_interrupted_run_leaves_nothing(here, tmp_path, capsys, monkeypatch):
    from hspec_lab.experiment import Session

    honest = Session.rounds_of

    def interrupted(self, index, **options):
        for item in honest(self, index, **options):
            yield item
            if not options and item.index == 1:
                raise KeyboardInterrupt

    monkeypatch.setattr(Session, "rounds_of", interrupted)
    assert run(*ASK, "--method", "ar") == 130
    assert capsys.readouterr().err == "hspec: interrupted; what was not finished is not stored\n"
    assert list(tmp_path.iterdir()) == []


def test_a_reader_that_goes_away_is_no_error(here, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdout", Gone())
    assert run(*ASK, "--method", "ar") == 141
    assert capsys.readouterr().err == ""


SCRIPT = """
import sys
from hspec_lab.cli import main
codes = main(["--help"]), main(["runs"]), main(["report", "latest", "--out", "page.html"])
assert not {"torch", "transformers"} & set(sys.modules), "imported torch"
sys.exit(any(codes))
"""


def test_looking_at_runs_needs_no_torch(here, tmp_path):
    assert run(*ASK, "--method", "ar") == 0
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "page.html").is_file()


def test_the_command_is_quiet_about_a_closed_pipe_and_runs_as_a_module(here):
    command = f"{sys.executable} -m hspec_lab --help | true; exit ${{PIPESTATUS[0]}}"
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, env=environment)
    assert done.returncode in (0, 141) and done.stderr == ""


def test_zoo_training_gets_its_budget(here, tmp_path, monkeypatch):
    from hspec_lab.train import zoo as training

    seen = []
    monkeypatch.setattr(training, "train_zoo", lambda *given, **named: seen.append((given, named)))
    words = ["zoo", "train", "--work", "w", "--steps", "target=7", "own_tokens=99"]
    assert cli.main(words) == 0
    ((work, budget), named) = seen[0]
    assert (str(work), budget.target, budget.own_tokens) == ("w", 7, 99)
    assert budget.intermediate == training.Budget().intermediate and named == {"device": "cpu"}


def test_a_stored_run_opens_from_its_folder_too(here):
    assert run(*ASK, "--method", "ar", "--store", "a/b") == 0
    (folder,) = (path for path in open_store("a/b").root.iterdir())
    assert len(Run(folder).tokens) == 6
