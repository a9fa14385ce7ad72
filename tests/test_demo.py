"""The demo on a tiny zoo: every row, the audit, the page, the JSON line."""

import json

import pytest
from test_decode import spell
from tiny import make_head, make_model

from hspec_lab import demo, table, zoo
from hspec_lab.cli import main
from hspec_lab.config import Eagle2
from hspec_lab.lab import Run, open_store
from hspec_lab.terms import ROUND_PHASES

PROMPTS = ["0123456789", "ABCDE<=>?@AB", "LLLL01L"]
KEYS = {"format", "method", "tokens_per_s", "speedup", "mean_emitted", "mismatches", "phase_share"}


def make_zoo(root):
    """A zoo of random models that agree now and then; widths as 4-bit groups need them."""
    sizes = {"hidden_size": 128, "intermediate_size": 128, "vocab_size": 32}
    target = spell(make_model(root / "target", scale=0.05, **sizes))
    middle = spell(make_model(root / "intermediate", scale=0.05, num_hidden_layers=1, **sizes))
    for model in (target, middle):
        make_head(root / f"{model.name}-eagle2", model, scale=0.1)
    (root / "text").mkdir()
    (root / "text" / "prompts.json").write_text(json.dumps({"prompts": PROMPTS}))
    return root


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return make_zoo(tmp_path_factory.mktemp("zoo"))


@pytest.fixture
def tiny_zoo(made, monkeypatch, tmp_path):
    """The tiny zoo in the place of the shipped one, and small trees."""
    monkeypatch.setattr(zoo, "ROOT", made)
    monkeypatch.setattr(demo, "EAGLE2_TREE", Eagle2(tree_size=6, depth=2, top_k=3))
    monkeypatch.setattr(demo, "HIERSPEC_TREE", Eagle2(tree_size=4, depth=2, top_k=2))
    monkeypatch.setattr(demo, "HIERSPEC_AT_LEAST", 3)
    monkeypatch.chdir(tmp_path)
    return made


SMALL = ["--n-prompts", "2", "--max-new-tokens", "12", "--threads", "1", "--store", "runs"]


def test_the_last_line_is_json_and_everything_else_goes_to_stderr(tiny_zoo, tmp_path, capsys):
    assert main(["demo", "--json", *SMALL]) == 0
    out, err = capsys.readouterr()
    assert out.count("\n") == 1
    found = json.loads(out)
    assert set(found) == {"rows", "environment"}
    rows = found["rows"]
    combinations = [(f, m) for f in demo.FORMATS for m in ("ar", "chain", "eagle2", "hierspec")]
    assert [(row["format"], row["method"]) for row in rows] == combinations
    for row in rows:
        assert KEYS <= set(row)
        assert set(row["phase_share"]) <= set(ROUND_PHASES)
        assert sum(row["phase_share"].values()) == pytest.approx(1)
        assert row["tokens_per_s"] > 0 and row["mean_emitted"] >= 1
        assert row["bugs"] == 0
        if row["method"] == "ar":
            assert (row["speedup"], row["mean_emitted"], row["mismatches"]) == (1, 1, 0)
    conditions = found["environment"]
    assert {"cpu", "threads", "torch", "date", "load_average", "commit"} <= set(conditions)
    assert (conditions["n_prompts"], conditions["max_new_tokens"]) == (2, 12)
    assert "tokens/s" in err and "measured: 2 held-out prompts x 12 tokens" in err
    page = (tmp_path / "report.html").read_text()
    assert page.count('class="plotly-graph-div"') == 3 and "Which model produced" in page
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html", "runs"]
    # the rows are the stored runs'
    stored = {run.name: run for run in open_store("runs")}
    assert set(stored) == {row["run"] for row in rows}
    for row in rows:
        assert stored[row["run"]].tokens_per_s == row["tokens_per_s"]


def test_a_quick_demo_shrinks_to_what_fits_and_says_so(tiny_zoo):
    plan = demo.Plan(formats=("fp32",), n_prompts=3, max_new_tokens=40, threads=1, seconds=1e-6)
    found = demo.run_demo(plan, "runs", "report.html")
    assert found.environment["n_prompts"] == 1
    assert found.environment["max_new_tokens"] == demo.FEWEST_TOKENS
    assert "fewer than asked for" in demo.conditions_text(found)
    # the stored config must not answer for more than was decoded
    assert {(run.config.n_prompts, run.config.max_new_tokens) for run in found.runs} == {(1, 32)}
    assert all(len(run.prompts) == 1 for run in found.runs)


@pytest.mark.parametrize(
    ("n_tokens", "tokens"), [(1000, 64), (192, 64), (150, 50), (30, 32), (0, 32)]
)
def test_outputs_are_as_long_as_the_time_pays_for(n_tokens, tokens):
    assert demo.affordable(demo.QUICK, n_tokens) == tokens


def test_a_bug_is_shown_loudly_and_exits_1(tiny_zoo, capsys, monkeypatch):
    from hspec_lab.experiment import Session

    honest = Session.output_ids

    def wrong(self, index):
        ids = honest(self, index)
        return [*ids[:3], (ids[3] + 1) % 32, *ids[4:]] if self.config.method == "chain" else ids

    monkeypatch.setattr(Session, "output_ids", wrong)
    assert main(["demo", "--formats", "fp32", *SMALL]) == 1
    out, err = capsys.readouterr()
    assert "2 BUG" in out and out.count("BUG: format fp32, method chain") == 2
    assert err.strip().endswith("a bug")
    chain = next(run for run in open_store("runs") if run.head["method"] == "chain")
    assert [entry["verdict"] for entry in chain.head["audits"]] == ["bug", "bug"]


def test_transformers_takes_its_turns_and_gets_its_rows(tiny_zoo):
    plan = demo.Plan(formats=("fp32",), n_prompts=2, max_new_tokens=12, threads=1, peer=True)
    found = demo.run_demo(plan, "runs", "report.html")
    generate, assisted = found.rows[-2:]
    assert [row["method"] for row in found.rows[-2:]] == ["generate", "assisted"]
    for row in (generate, assisted):
        assert row["format"] == "transformers fp32" and row["tokens_per_s"] > 0
        assert (row["mismatches"], row["bugs"]) == (0, 0)
    assert generate["speedup"] == 1 != assisted["speedup"]
    ratios = found.environment["peer"]
    ours = found.rows[0]["tokens_per_s"]
    assert ratios["ar_over_generate"] == pytest.approx(ours / generate["tokens_per_s"])
    assert set(ratios) - {"ar_over_generate"} == {"best_fp32_over_assisted", "best_over_assisted"}
    assert json.loads(found.json())["rows"][-1]["mean_emitted"] is None
    assert "transformers fp32" in table.table_text(found.rows)
    assert "over transformers" in demo.conditions_text(found)


def test_a_plan_refuses_what_cannot_be_compared():
    for wrong, words in (
        ({"formats": ("w5",)}, "w5: weights have"),
        ({"methods": ("ar", "magic")}, "unknown method 'magic'"),
        ({"methods": ("chain",)}, "ar among its methods"),
        ({"formats": ("w8a8",), "peer": True}, "add fp32"),
    ):
        with pytest.raises(ValueError, match=words):
            demo.Plan(**wrong)


def test_the_page_of_one_run_needs_no_other(tiny_zoo, tmp_path):
    plan = demo.Plan(formats=("fp32",), n_prompts=1, max_new_tokens=8, threads=1)
    run = Run(demo.run_demo(plan, "runs", "report.html").runs[-1].folder)
    page = table.write_page(tmp_path / "one.html", table.rows_of([run]), [run], run.environment)
    assert "hierspec fp32" in page.read_text()
