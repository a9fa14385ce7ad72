"""`run` and `run_together`: what is stored answers, what takes turns says so."""

from dataclasses import replace

import pytest
from test_decode import PROMPTS, drafts
from tiny import make_zoo

from hspec_lab import run, run_together
from hspec_lab.config import Config
from hspec_lab.experiment import Session
from hspec_lab.timeline import of_run


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    return make_zoo(tmp_path_factory.mktemp("zoo"))


@pytest.fixture
def configs(zoo):
    plain = Config(
        target=str(zoo / "target"), prompts=PROMPTS[:3], max_new_tokens=12, row_invariant=True
    )
    return [plain, replace(plain, draft=drafts(zoo)["eagle2"])]


def quiet(*_):
    """Progress that nobody looks at."""


def test_a_stored_run_answers_until_modules_are_asked_for(configs, tmp_path):
    first = run(configs[1], root=tmp_path, progress=quiet)
    assert run(configs[1], root=tmp_path, progress=quiet).name == first.name
    with_modules = run(configs[1], root=tmp_path, progress=quiet, modules=True)
    assert with_modules.name != first.name
    assert run(configs[1], root=tmp_path, progress=quiet, modules=True).name == with_modules.name
    kinds = set(of_run(with_modules.head, with_modules._tables).ranges["kind"])
    assert kinds == {"round", "phase", "module"}
    assert with_modules.texts == first.texts


def test_runs_that_took_turns_say_so_and_answer_together_only(configs, tmp_path):
    alone = run(configs[0], root=tmp_path, progress=quiet)
    pair = run_together(configs, root=tmp_path, progress=quiet)
    assert [found.config for found in pair] == configs
    assert pair[0].name != alone.name and pair[0].texts == pair[1].texts == alone.texts
    assert alone.head["together"] == "" != pair[0].head["together"] == pair[1].head["together"]
    again = run_together(configs, root=tmp_path, progress=quiet)
    assert [found.name for found in again] == [found.name for found in pair]
    # one of them measured by itself since then: they compare no more
    run(configs[1], root=tmp_path, progress=quiet, again=True)
    third = run_together(configs, root=tmp_path, progress=quiet)
    assert not {found.name for found in third} & {found.name for found in pair}


def test_runs_take_turns_prompt_by_prompt_and_who_begins_changes(configs, tmp_path, monkeypatch):
    decoded, rounds_of = [], Session.rounds_of

    def noting(session, index, *rest, **options):
        if not options.get("warmup"):
            decoded.append((index, session.config.method))
        return rounds_of(session, index, *rest, **options)

    monkeypatch.setattr(Session, "rounds_of", noting)
    seen = []
    run_together(configs, root=tmp_path, progress=lambda done, total, text: seen.append(done))
    assert seen == sorted(seen)
    turns = [(0, "ar"), (0, "eagle2"), (1, "eagle2"), (1, "ar"), (2, "ar"), (2, "eagle2")]
    assert decoded == turns


@pytest.mark.parametrize(
    ("change", "message"),
    [({"max_new_tokens": 9}, None), ({"threads": 1}, "share threads, got 2 and 1")],
)
def test_configs_that_take_turns_share_their_conditions(configs, tmp_path, change, message):
    pair = [configs[0], replace(configs[1], **change)]
    if message is None:
        assert len(run_together(pair, root=tmp_path, progress=quiet)) == 2
    else:
        with pytest.raises(ValueError, match=message):
            run_together(pair, root=tmp_path, progress=quiet)
    with pytest.raises(ValueError, match="at least one config"):
        run_together([], root=tmp_path, progress=quiet)
