"""A toy checkpoint is a real folder: it decodes, drafts and is refused like any other."""

import pytest

from hspec_lab import Chain, Config, run
from hspec_lab.chain_lengths import try_lengths
from hspec_lab.cost import stage_costs
from hspec_lab.measure_rounds import RoundsPlan, measure_rounds
from hspec_lab.record import record
from hspec_lab.text import load_tokenizer
from hspec_lab.train import toy

SAME = {"prompts": toy.prompts(2, lines=2), "max_new_tokens": 16, "threads": 1}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    place = tmp_path_factory.mktemp("toy")
    target = toy.make_checkpoint(place / "target", hidden=64, n_steps=4)
    draft = toy.make_checkpoint(place / "draft", hidden=64, layers=1, n_steps=4, tokenizer=target)
    return place, target, draft


def test_a_folder_holds_what_a_downloaded_one_does(folders):
    _, target, draft = folders
    names = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    files = toy.files_of(target, draft)
    assert set(files["file"]) == names and (files["bytes"] > 0).all() and len(files) == 8


def test_a_tokenizer_is_shared_or_made(folders):
    place, target, draft = folders
    assert load_tokenizer(target).get_vocab() == load_tokenizer(draft).get_vocab()
    assert len(load_tokenizer(target).get_vocab()) == toy.VOCAB
    with pytest.raises(ValueError, match="no tokenizer.json to take over"):
        toy.make_checkpoint(place / "none", tokenizer=place)


def test_training_moves_weights_and_a_made_folder_stays(folders, tmp_path):
    _, target, _ = folders
    before = (target / "model.safetensors").read_bytes()
    assert toy.make_checkpoint(target, hidden=64, n_steps=9) == target
    assert (target / "model.safetensors").read_bytes() == before
    raw = toy.make_checkpoint(tmp_path / "raw", hidden=64, n_steps=0, tokenizer=target)
    assert (raw / "model.safetensors").read_bytes() != before


def test_a_width_that_no_head_divides_is_refused(tmp_path):
    with pytest.raises(ValueError, match="multiple of 64, got 100"):
        toy.make_checkpoint(tmp_path / "odd", hidden=100)


def test_lengths_are_tried_and_agree_with_replay(folders):
    place, target, draft = folders
    chain = Chain(f"{draft}@fp32", 3)
    config = Config(target=f"{target}@fp32", draft=chain, **SAME)
    trace = record(config, place / "trace", toy.silent)
    plan = RoundsPlan(targets=(config.target,), drafts=(chain,), seconds=0.5, **SAME)
    measure_rounds(plan, place / "stages", toy.silent)
    stages = stage_costs(place / "stages", config.target, chain)
    table = try_lengths(config, (3, 1), trace, stages, repeats=2, progress=toy.silent)
    assert list(table["draft_len"]) == [1, 3]
    assert table["mean_emitted"].tolist() == pytest.approx(table["mean_emitted_measured"].tolist())
    assert table["error"].equals(table["ar_steps"] / table["ar_steps_measured"] - 1)
    assert table.attrs["note"].endswith("2 prompts x 16 tokens, 2 turns each")
    with pytest.raises(ValueError, match="lengths are those of a Chain"):
        try_lengths(Config(), (1,), trace, stages)


def test_strangers_are_refused_in_one_line(folders, tmp_path):
    place, target, _ = folders
    stranger = toy.make_checkpoint(place / "stranger", hidden=64, vocab=300, n_steps=0)
    config = Config(target=f"{target}@fp32", draft=Chain(f"{stranger}@fp32", 2), **SAME)
    told = toy.refusal(run, config, root=tmp_path, progress=toy.silent)
    assert told.startswith("ValueError: the tokenizers of target and stranger differ")
    assert "\n" not in told and toy.refusal(len, ()) == "nothing was refused"


def test_a_fresh_folder_is_empty_and_not_a_run(tmp_path, monkeypatch):
    monkeypatch.setenv("HSPEC_STORE", str(tmp_path / "store"))
    folder = toy.fresh_folder()
    (folder / "old").write_text("x")
    assert toy.fresh_folder() == folder and not list(folder.iterdir())
    assert folder.name.startswith(".")
