"""Looking: the text stays bitwise the same, and every number is the models' own."""

from collections import Counter
from unittest.mock import patch

import numpy as np
import pandas as pd
import pytest
import torch
from looked import CHAIN, TREE, nodes_of, trees_of
from test_decode import PROMPTS, drafts
from tiny import make_zoo

from hspec_lab import store, trees_folder, zoo
from hspec_lab.config import Chain, Config, Eagle2, Refine, Static
from hspec_lab.draft import Eagle2Drafter
from hspec_lab.experiment import Session
from hspec_lab.looking import _pieces, look
from hspec_lab.pipeline import Models
from hspec_lab.text import load_tokenizer
from hspec_lab.trees_folder import NODES, PROPOSAL

SETTINGS = {"prompts": PROMPTS, "max_new_tokens": 20, "threads": 1}
STATIC = Static(parents=(-1, 0, 0, 0, 1, 1, 4), places=(-1, 0, 1, 3, 0, 2, 0))


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Target, two smaller models and heads; random, and alike enough to agree now and then."""
    return make_zoo(tmp_path_factory.mktemp("zoo"))


def config_of(root, draft=None, **more):
    return Config(target=str(root / "target"), draft=draft, **SETTINGS | more)


def methods(root):
    tree = Eagle2(tree_size=12, depth=3, top_k=4)
    sampled = Refine(str(root / "middle"), tree, at_least=4, sampling="sample")
    return (
        {name: (draft, {}) for name, draft in drafts(root).items()}
        | {"ar": (None, {}), "static": (STATIC, {})}
        | {
            "ar, sampled": (None, {"temperature": 1.0}),
            "chain, sampled": (Chain(str(root / "middle"), 4), {"temperature": 0.8}),
            "eagle2, sampled": (tree, {"temperature": 1.3}),
            "hierspec, sampled": (sampled, {"temperature": 1.0}),
        }
    )


def decoded(config, prompt):
    session = Session(config)
    rounds = list(session.rounds_of(prompt))
    return session.output_ids(prompt), [(item.sources, item.n_proposed) for item in rounds]


def emitted(nodes):
    """The tokens that one proposal became."""
    path = nodes[nodes["accepted"]].sort_values("depth")
    return [*path["token"].iloc[1:], path["choice"].iloc[-1]]


@pytest.mark.parametrize("name", methods(__import__("pathlib").Path()))
def test_the_text_is_the_one_that_nobody_looked_at(name, root):
    draft, more = methods(root)[name]
    config = config_of(root, draft, **more)
    plain, rounds = decoded(config, prompt=1)
    trees = look(config, prompt=1)
    assert trees.tokens["token"].tolist() == plain
    assert trees.tokens["source"].tolist() == [one for sources, _ in rounds for one in sources]
    # the trees say the same: kept tokens and the target's own, up to the limit
    of_target = trees.nodes[trees.nodes["level"] == "target"]
    found = [token for _, part in of_target.groupby("round") for token in emitted(part)]
    assert found[: len(plain)] == plain
    sizes = of_target.groupby("round").size() - 1
    assert sizes.tolist() == [n_proposed for _, n_proposed in rounds]


def test_by_default_nobody_looks_and_the_head_runs_once(root):
    config = config_of(root, drafts(root)["three-levels"])
    session, seen, grow = Session(config), [], Eagle2Drafter.grow
    level = session.verifier
    while level is not None:
        assert level.looker is None
        level = getattr(level.drafter, "verifier", None)
    with patch.object(Eagle2Drafter, "grow", lambda self: seen.append(0) or grow(self)):
        with patch.object(Eagle2Drafter, "propose", autospec=True, side_effect=_counted(seen)):
            list(session.rounds_of(0))
    assert Counter(seen)[0] == Counter(seen)[1] > 0


def _counted(seen):
    propose = Eagle2Drafter.propose
    return lambda self: seen.append(1) or propose(self)


def alone(root, name, text):
    """Distributions of a model behind every token of a text, fp32 [n, V]."""
    model = Models().transformer(str(root / name), False, "cpu")
    with torch.inference_mode():
        return torch.softmax(model.logits(model.read(text, model.new_cache(200))), dim=-1).numpy()


def test_probabilities_are_those_of_the_models_asked_alone(root):
    trees = look(config_of(root, drafts(root)["hierspec"]), prompt=0)
    ids = Session(config_of(root)).prompt_ids[0]
    tokens = trees.tokens
    for at in range(tokens["round"].max() - 1):
        part = trees.nodes.query("level == 'target' and round == @at").set_index("node")
        text = ids + tokens.loc[tokens["round"] < at, "token"].tolist()
        chain = part["token"].tolist()
        assert text[-1] == chain[0]
        target, middle = (alone(root, name, text + chain[1:]) for name in ("target", "middle"))
        for node in range(1, len(chain)):
            behind = len(text) + node - 2
            row = part.loc[node]
            assert row["p_model"] == pytest.approx(target[behind, row["token"]], abs=1e-5)
            assert row["p_draft"] == pytest.approx(middle[behind, row["token"]], abs=1e-5)
            assert row["rank"] == 0
        for node in range(len(chain) - 1):
            row, behind = part.loc[node], len(text) + node - 1
            assert row["choice"] == target[behind].argmax()
            assert row["choice_p"] == pytest.approx(target[behind].max(), abs=1e-5)
            assert row["choice_p_draft"] == pytest.approx(middle[behind, row["choice"]], abs=1e-5)
        assert np.isnan(part.loc[len(chain) - 1, "choice_p_draft"])


def test_second_choices_have_place_one_in_the_model_that_offers_them(root):
    trees = look(config_of(root, drafts(root)["narrow-tree"]), prompt=0)
    part = trees.nodes.query("level == 'target' and node > 0")
    chain = part["node"] == part["parent"] + 1
    leaf = part.duplicated([*PROPOSAL, "parent"])
    assert leaf.sum() > 10 and (part.loc[leaf, "rank"] == 1).all()
    assert (part.loc[chain & ~leaf, "rank"] == 0).all()


def test_a_heads_ranks_order_its_probabilities_and_both_kinds_of_tree_agree(root):
    dynamic = look(config_of(root, Eagle2(12, 3, 4))).nodes
    static = look(config_of(root, STATIC)).nodes
    for nodes in (dynamic, static):
        drafted = nodes[nodes["node"] > 0]
        assert drafted["p_draft"].between(0, 1).all()
        for _, siblings in drafted.groupby([*PROPOSAL, "parent"]):
            ordered = siblings.sort_values("rank")
            assert ordered["rank"].is_unique and ordered["p_draft"].is_monotonic_decreasing
    # the first tree begins at the same text; nodes 1 and 2 hang from its root in both
    one, other = (
        nodes.query("round == 0 and parent == 0").set_index("token")["p_draft"]
        for nodes in (dynamic, static)
    )
    both = one.index.intersection(other.index)
    assert len(both) >= 2 and np.allclose(one[both], other[both], rtol=1e-5)


def test_what_the_head_gave_to_the_models_own_token_is_known_where_it_was_scored(root):
    nodes = look(config_of(root, Eagle2(12, 3, 4))).nodes
    drafted = nodes[nodes["node"] > 0].set_index([*PROPOSAL, "parent", "token"])["p_draft"]
    checked = 0
    for row in nodes[nodes["choice_p_draft"].notna()].itertuples():
        key = (row.prompt, row.round, row.level, row.step, row.node, row.choice)
        if key in drafted.index:
            assert row.choice_p_draft == pytest.approx(drafted[key])
            checked += 1
    assert checked > 5


def test_steps_of_a_smaller_model_count_within_the_round_they_draft_for(root):
    trees = look(config_of(root, drafts(root)["hierspec"]), prompt=0)
    rounds = trees.rounds().set_index(["round", "level"])
    assert trees.nodes.query("round == -1")["level"].unique().tolist() == ["target"]
    for at in range(trees.tokens["round"].max() + 1):
        drafted = rounds.loc[(at, "intermediate")]
        assert drafted["n_emitted"] == rounds.loc[(at, "target"), "n_proposed"]
        steps = trees.nodes.query("round == @at and level == 'intermediate'")["step"].unique()
        assert steps.tolist() == list(range(drafted["n_steps"]))


def test_a_token_has_its_own_space_and_half_a_letter_its_name():
    tokenizer = load_tokenizer(zoo.folder("target"))
    piece = _pieces(tokenizer)
    ids = tokenizer.encode("return the\n    é").ids
    assert "".join(map(piece, tokenizer.encode("return the\n    x").ids)).endswith("the\n    x")
    assert all(piece(token) and "\ufffd" not in piece(token) for token in ids)


def test_rounds_on_a_device_are_refused(root):
    with pytest.raises(ValueError, match="'cuda' stay in device memory.*use device='cpu'"):
        look(config_of(root, device="cuda"))


def test_a_prompt_that_is_not_there_is_refused(root):
    with pytest.raises(ValueError, match=r"prompt is 0\.\.3, got 4"):
        look(config_of(root), prompt=4)


def test_nothing_is_stored_as_a_run(root, tmp_path, monkeypatch):
    monkeypatch.setenv("HSPEC_STORE", str(tmp_path))
    trees = look(config_of(root), max_new_tokens=3)
    assert not list(tmp_path.iterdir())
    trees.write(tmp_path / "looked")
    assert store.list_runs(tmp_path)["problem"].tolist() != [""]
    assert trees.head["kind"] == "looked" and len(trees.tokens) == 3


def test_written_trees_come_back(root, tmp_path):
    trees = look(config_of(root, drafts(root)["narrow-tree"], max_new_tokens=8))
    found = trees_folder.read(trees.write(tmp_path / "looked"))
    pd.testing.assert_frame_equal(found.nodes, trees.nodes)
    pd.testing.assert_frame_equal(found.tokens, trees.tokens)
    assert found.head == trees.head and list(found.nodes) == list(NODES)
    with pytest.raises(ValueError, match="never written over"):
        trees.write(tmp_path / "looked")


@pytest.mark.parametrize("name", ["trees.json", "nodes.parquet", "tokens.parquet"])
def test_a_damaged_folder_is_named_in_one_line(name, tmp_path):
    folder = trees_of(nodes_of(TREE)).write(tmp_path / "looked")
    (folder / name).write_bytes(b"cut")
    with pytest.raises(ValueError, match=name):
        trees_folder.read(folder)
    (folder / name).unlink()
    with pytest.raises(ValueError, match=name):
        trees_folder.read(folder)


def test_another_schema_or_foreign_columns_are_refused(tmp_path):
    trees = trees_of(nodes_of(TREE))
    folder = trees_folder.Trees(trees.head | {"schema": 9}, trees.nodes, trees.tokens)
    with pytest.raises(ValueError, match="schema 9"):
        trees_folder.read(folder.write(tmp_path / "other"))
    trees.nodes["more"] = 1
    with pytest.raises(ValueError, match="nodes.parquet has the columns"):
        trees_folder.read(trees.write(tmp_path / "foreign"))


def test_disagreements_name_both_tokens_and_four_probabilities():
    whole = nodes_of(CHAIN, round=1).assign(accepted=True)
    found = trees_of(nodes_of(TREE), whole).disagreements()
    assert len(found) == 1
    row = found.iloc[0]
    assert (row["round"], row["node"], row["drafted"], row["chosen"]) == (0, 3, "e", "own")
    chances = row[[name for name in found if "_p_" in name]].tolist()
    assert chances == [0.6, 0.2, 0.1, 0.7]


def test_the_take_away_counts_the_targets_rounds():
    trees = trees_of(nodes_of(TREE, "intermediate"), nodes_of(CHAIN), nodes_of(CHAIN, round=1))
    words = trees.take_away()
    assert "In 2 rounds, of 5 nodes that the head drew, 1 passes" in words
    assert "**2.00 tokens per pass**" in words and "2026-11-21" in words
