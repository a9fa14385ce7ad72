"""The commands about bits: what they print, what they find again, one line where they refuse."""

import json
import random

import pytest
from test_demo import PROMPTS, make_zoo

from hspec_lab import cli, quality_table, zoo
from hspec_lab.formats import ALGORITHMS
from hspec_lab.quantize import driver


def letters(n: int, seed: int) -> str:
    chosen = random.Random(seed)
    return "".join(chr(48 + chosen.randrange(32)) for _ in range(n))


# prompts of the table come from the modules it measures on
HELD_OUT = {"evaluation": [letters(300, 0) + PROMPTS[0], PROMPTS[1] + letters(200, 1)]}
HELD_OUT["calibration"] = [letters(2000, 2)]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return make_zoo(tmp_path_factory.mktemp("zoo"))


@pytest.fixture
def here(made, monkeypatch, tmp_path):
    monkeypatch.setattr(zoo, "ROOT", made)
    monkeypatch.setattr(zoo, "held_out", HELD_OUT.get)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HSPEC_STORE", "runs")
    monkeypatch.setenv("HSPEC_MODELS", "shelf")
    return tmp_path


def run(*words, capsys) -> tuple[int, str, str]:
    """Exit code, stdout, and what the command itself said on stderr."""
    code = cli.main(list(words))
    out, err = capsys.readouterr()
    said = [line for line in err.replace("\r", "\n").splitlines() if line.startswith("hspec: ")]
    return code, out, "\n".join(said)


@pytest.mark.parametrize("name", ["quantize", "quality"])
def test_help_names_every_option(name, capsys):
    code, out, _ = run(name, "--help", capsys=capsys)
    assert code == 0 and f"usage: hspec {name}" in out and "REF" in out


def test_algorithms_are_listed_one_a_line(capsys):
    code, out, _ = run("quantize", "--list", capsys=capsys)
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()] == list(ALGORITHMS)


def test_a_folder_is_printed_and_found_again_at_once(here, capsys, monkeypatch):
    words = ["quantize", "zoo:target@w4a16-g32+gptq", "zoo:intermediate@w8a8+smooth"]
    code, out, said = run(*words, capsys=capsys)
    folders = [here / line for line in out.splitlines()]
    assert code == 0 and not said and len(folders) == 2
    assert all(json.loads((f / "config.json").read_text())["hspec"] for f in folders)
    # nothing is read or computed a second time
    monkeypatch.setattr(driver, "_Job", None)
    assert run(*words, capsys=capsys) == (0, out, "")


def test_text_windows_and_head_are_the_caller_s(here, made, capsys):
    (here / "own.txt").write_text(letters(400, 3))
    words = ["quantize", "zoo:target@fp32+quarot", "--calibration", "own.txt", "--length", "32"]
    words += ["--sequences", "3", "--head", str(made / "target-eagle2")]
    code, out, _ = run(*words, capsys=capsys)
    folder = here / out.strip()
    assert code == 0
    marks = json.loads((folder / "config.json").read_text())["hspec"]
    assert marks["calibration"].endswith(" 3 x 32")
    assert folder.with_name(folder.name + "-eagle2").is_dir()


@pytest.mark.parametrize(
    "words,message",
    [
        (["quantize"], "nothing to quantize: give REF"),
        (["quantize", "zoo:target@w4a16-g32"], "nothing to make"),
        (["quantize", "zoo:target@w4a16-g32+gptw"], "unknown algorithm 'gptw'"),
        (["quantize", "zoo:other@w4a16-g32+gptq"], "the zoo has no 'other'"),
        (["quantize", "nowhere@w4a16-g32+gptq"], "nowhere: no such folder"),
        (["quantize", "zoo:target@w16-g128"], "leave out -g128"),
        (["quantize", "zoo:target@w4a16-g32+gptq", "--calibration", "no.txt"], "no.txt: cannot be"),
        (["quantize", "zoo:target@w4a16-g32+gptq", "--length", "0"], "length must be a whole"),
        (["quantize", "zoo:target@w8a8+smooth", "--head", "x"], "rotates nothing"),
        (["quantize", "zoo:target@bitstack-99mb"], "a budget of 99 MB"),
        (["quality"], "required: REF"),
        (["quality", "zoo:target@w5a16"], "w5a16: weights have"),
        (["quality", "zoo:target@fp32", "--windows", "0"], "windows, prompts and threads"),
        (["quality", "zoo:target@nf4+gptq"], "+reference"),
        (
            ["run", "--target", "zoo:target@nf4+gptq", "--method", "ar", "--prompt", "0"],
            "nf4+gptq+ref",
        ),
    ],
)
def test_mistakes_end_in_one_line_and_make_nothing(here, capsys, words, message):
    code, out, said = run(*words, capsys=capsys)
    assert (code, out) == (2, "") and message in said and said.count("\n") == 0
    assert not (here / "shelf").exists()


def test_a_run_makes_its_models_first_and_decodes(here, capsys):
    words = ["run", "--target", "zoo:target@w4a16-g32+gptq", "--method", "eagle2", "--depth", "2"]
    words += ["--prompt", "0123", "--max-new-tokens", "6", "--threads", "1"]
    code, out, said = run(*words, capsys=capsys)
    assert code == 0 and len(out.split()) == 6 and "w4a16-g32+gptq" in said
    assert len(list((here / "shelf").iterdir())) == 1
    assert run(*words, capsys=capsys)[1] == out


QUALITY = ["--windows", "2", "--prompts", "1", "--threads", "1"]


@pytest.fixture
def short(monkeypatch):
    monkeypatch.setattr(quality_table, "_MAX_NEW_TOKENS", 8)


def test_a_table_is_printed_and_goes_on_from_its_file(here, short, capsys, monkeypatch):
    measured, row = [], quality_table._row

    def counted(model, *rest):
        measured.append(model)
        return row(model, *rest)

    monkeypatch.setattr(quality_table, "_row", counted)
    words = ["quality", "zoo:target@w4a16-g32", "--out", "q/table.json", *QUALITY]
    code, out, said = run(*words, capsys=capsys)
    assert code == 0 and said == "hspec: stored q/table.json" and len(out.splitlines()) == 2
    words.insert(2, "zoo:target@w4a16-g32+gptq")
    code, out, _ = run(*words, capsys=capsys)
    assert code == 0
    assert measured == ["zoo:target@w4a16-g32", "zoo:target@w4a16-g32+gptq"]
    header, *lines = out.splitlines()
    assert header.split()[:2] == ["model", "bits"] and len(lines) == 2
    assert [line.split()[0] for line in lines] == words[1:3]
    assert run(*words, capsys=capsys)[1] == out and len(measured) == 2
    stored = json.loads((here / "q" / "table.json").read_text())
    assert [row["bits"] for row in stored["rows"]] == [5, 5]


def test_a_file_measured_otherwise_is_refused(here, short, capsys):
    words = ["quality", "zoo:target@w4a16-g32", "--out", "table.json", *QUALITY]
    assert run(*words, capsys=capsys)[0] == 0
    before = (here / "table.json").read_bytes()
    for changed in (["--windows", "1"], ["--reference", "zoo:target@w8a16"], ["--prompts", "0"]):
        code, out, said = run(*words, *changed, capsys=capsys)
        assert (code, out) == (2, "") and "table.json was measured with" in said
    assert (here / "table.json").read_bytes() == before
