"""Watched models: the same text, with the time of attention, mlp and lm_head beside it."""

import pytest
from test_decode import PROMPTS, drafts
from tiny import make_zoo

from hspec_lab.config import Config
from hspec_lab.experiment import Session
from hspec_lab.model.watched import watched
from hspec_lab.pipeline import Models
from hspec_lab.timeline import of_run

WATCHED = ("eagle2", "hierspec", "chain", "three-levels", "narrow-tree")


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    return make_zoo(tmp_path_factory.mktemp("zoo"))


def decoded(root, name, models, **options):
    config = Config(
        target=str(root / "target"),
        draft=drafts(root)[name] if name else None,
        prompts=PROMPTS[:2],
        max_new_tokens=20,
        row_invariant=True,
    )
    session = Session(config, models, **options)
    for index in range(2):
        for _ in session.rounds_of(index):
            pass
    return session, [session.output_ids(index) for index in range(2)]


@pytest.mark.parametrize("name", [None, *WATCHED])
def test_watched_models_write_the_same_text_and_time_every_module_inside_its_phase(zoo, name):
    models = Models()
    plain, text = decoded(zoo, name, models)
    session, watched_text = decoded(zoo, name, models, modules=True)
    assert watched_text == text
    assert "modules" not in plain.tables()
    tables = session.tables()
    assert tables["rounds"]["n_emitted"].tolist() == plain.tables()["rounds"]["n_emitted"].tolist()
    ranges = of_run({}, tables).ranges
    modules = ranges[ranges["kind"] == "module"]
    parents = ranges.loc[modules["parent"]]
    assert (parents["kind"] == "phase").all()
    for column in ("phase", "level", "prompt", "round", "kv_len"):
        assert parents[column].tolist() == modules[column].tolist()
    # every layer of a pass does both, and every pass that chooses a token ends in an lm_head
    counts = modules["name"].value_counts()
    assert counts["attention"] == counts["mlp"] > counts["lm_head"] > 0
    assert set(modules.loc[modules["name"] == "lm_head", "layer"]) == {-1}
    verified = modules[(modules["phase"] == "verify_target") & (modules["name"] == "attention")]
    passes = ranges[(ranges["phase"] == "verify_target") & (ranges["kind"] == "phase")]
    layers = session.verifier.model.shape.layers
    assert len(verified) == layers * len(passes)
    assert verified["n_tokens"].sum() == layers * passes["n_tokens"].sum()


def test_a_model_is_left_as_it_is_by_being_watched(zoo):
    models = Models()
    session, _ = decoded(zoo, None, models)
    model = session.verifier.model
    layers, output = list(model.layers), model.lm_head
    seen = watched(model, session.recorder)
    assert model.layers == layers and model.lm_head is output
    assert seen.layers[0].qkv is layers[0].qkv and seen.nbytes == model.nbytes


def test_draft_spans_say_how_many_nodes_they_propose(zoo):
    session, _ = decoded(zoo, "eagle2", Models())
    tables = session.tables()
    spans = tables["spans"]
    keys = ["prompt", "round"]
    drafted = spans[spans["phase"] == "draft"].set_index(keys)["n_nodes"]
    rounds = tables["rounds"].set_index(keys)["n_proposed"]
    assert (drafted == rounds[drafted.index] + 1).all()
    verified = spans[spans["phase"] == "verify_target"].set_index(keys)["n_nodes"]
    assert (verified == rounds + 1).all()
    assert (spans.loc[spans["phase"] == "prefill", "n_nodes"] == 0).all()


def test_modules_are_refused_where_they_cannot_be_timed(zoo):
    with pytest.raises(ValueError, match="modules=True records"):
        decoded(zoo, None, Models(), modules=True, record=False)
