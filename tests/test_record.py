"""Recording: replayed rounds are decoding's own, for every drafter and temperature."""

import random
from dataclasses import replace

import numpy as np
import pytest
from test_accept import distribution_of
from tiny import make_head, make_model, make_zoo, spell
from tokenizers import Tokenizer

from hspec_lab import record as recording
from hspec_lab.acceptance import COLUMNS, replay
from hspec_lab.acceptance_folder import Trace, read_trace, write_trace
from hspec_lab.config import Chain, Config, Eagle2, Refine
from hspec_lab.decode import decode
from hspec_lab.experiment import Session
from hspec_lab.pipeline import Models, build
from hspec_lab.record import ranks_of, record
from hspec_lab.text import TextStream

PROMPTS = ("012345678", "ABCDE<=>?@", "Q", "LLLLLLLL")
COUNTS = ["prompt", "round", "kv_len", "n_proposed", "n_accepted", "n_emitted"]
PASSES = ["intermediate_trees", "intermediate_steps", "intermediate_catch_ups"]


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    return make_zoo(tmp_path_factory.mktemp("zoo"))


def largest(zoo, kind, **settings):
    """The config of a trace."""
    head = Eagle2(tree_size=99, depth=5, top_k=4)
    middle = str(zoo / "middle")
    draft = {
        "eagle2": head,
        "chain": Chain(middle, 7),
        "refine": Refine(middle, head, at_least=7),
    }[kind]
    given = {"prompts": PROMPTS, "max_new_tokens": 48, "threads": 1} | settings
    return Config(target=str(zoo / "target"), draft=draft, **given)


@pytest.fixture(scope="module")
def traces(zoo, tmp_path_factory):
    root = tmp_path_factory.mktemp("traces")
    return {kind: record(largest(zoo, kind), root / kind) for kind in ("eagle2", "chain", "refine")}


def any_draft(draw, zoo):
    """A kind of trace and a random drafter that it answers for."""
    middle = str(zoo / "middle")
    head = Eagle2(draw.randint(1, 90), draw.randint(1, 5), 4)
    narrow = draw.choice([None, draw.randint(1, 20)])
    return draw.choice([
        ("eagle2", head),
        ("chain", Chain(middle, draw.randint(1, 7))),
        ("refine", Chain(middle, draw.randint(1, 7))),
        ("refine", Refine(middle, head, draw.randint(1, 7))),
        ("refine", Refine(middle, head, draw.randint(1, 7), tree_size=narrow)),
    ])  # fmt: skip


def decoded(config, models):
    """Rounds as they were recorded, with the passes of the model below in each."""
    session = Session(config, models)
    for index in range(len(session.prompts)):
        for _ in session.rounds_of(index):
            pass
    tables = session.recorder.tables()
    spans = tables["spans"]
    inner = spans[(spans["level"] == "intermediate") & (spans["round"] >= 0)]
    inner = inner[inner["phase"].isin(["draft", "verify_intermediate"])]
    widest = 2 if isinstance(config.draft, Refine) else 0
    kinds = {
        # a tree of two nodes looks like a catch-up: the drafter says which it was
        "intermediate_trees": inner[inner["n_tokens"] > widest] if widest else inner[:0],
        "intermediate_steps": inner[inner["n_tokens"] == 1],
        "intermediate_catch_ups": inner[inner["n_tokens"] == 2],
    }
    rounds = tables["rounds"].set_index(["prompt", "round"])
    for name, rows in kinds.items():
        counts = rows.groupby(["prompt", "round"]).size()
        rounds[name] = counts.reindex(rounds.index, fill_value=0)
    return rounds.reset_index(), session


def test_two_hundred_random_settings_give_the_rounds_of_decoding(zoo, traces):
    draw, models, n_rounds = random.Random(0), Models(), 0
    for _ in range(200):
        kind, draft = any_draft(draw, zoo)
        n_tokens = draw.choice([1, 2, 3, 17, 48])
        config = replace(traces[kind].config, draft=draft, max_new_tokens=n_tokens)
        found, session = decoded(config, models)
        told = replay(traces[kind], draft, n_tokens)
        assert found[COUNTS].to_numpy().tolist() == told[COUNTS].to_numpy().tolist(), draft
        texts = traces[kind].text.groupby("prompt")["token"]
        for prompt, text in texts:
            assert session.output_ids(prompt) == text.tolist()[:n_tokens]
        head = draft.draft if isinstance(draft, Refine) else None
        if head is None or min(head.tree_size, 5 + 16 * (head.depth - 1)) > 2:
            assert found[PASSES].to_numpy().tolist() == told[PASSES].to_numpy().tolist(), draft
        n_rounds += len(told)
    assert n_rounds > 5000


def test_a_draft_that_is_never_or_always_right_is_replayed_too(zoo, tmp_path):
    models = Models()
    for name, model in (("itself", "target"), ("stranger", "small")):
        draft = Refine(str(zoo / model), Eagle2(30, 3, 4), at_least=5)
        trace = record(replace(largest(zoo, "refine"), draft=draft), tmp_path / name)
        for at_least in (1, 4, 5):
            smaller = replace(draft, at_least=at_least, draft=Eagle2(9, 2, 4))
            found, _ = decoded(replace(trace.config, draft=smaller), models)
            told = replay(trace, smaller)
            assert found[COUNTS].to_numpy().tolist() == told[COUNTS].to_numpy().tolist()


def test_an_end_of_text_inside_a_block_cuts_a_replayed_round_as_decoding_does(zoo, tmp_path):
    plain = Session(replace(largest(zoo, "eagle2"), draft=None))
    for index in range(len(PROMPTS)):
        list(plain.rounds_of(index))
    eos = plain.output_ids(0)[9]
    root = make_zoo(tmp_path / "zoo")
    for path in root.glob("*/config.json"):
        path.write_text(path.read_text().replace('"eos_token_id": null', f'"eos_token_id": {eos}'))
    models = Models()
    for kind in ("eagle2", "chain", "refine"):
        trace = record(largest(root, kind), tmp_path / kind)
        assert trace.head["n_positions"][0] <= 10
        found, session = decoded(trace.config, models)
        told = replay(trace, trace.draft)
        assert session.output_ids(0)[-1] == eos
        assert found[COUNTS].to_numpy().tolist() == told[COUNTS].to_numpy().tolist()


def test_row_invariant_rounds_are_replayed_at_a_format_that_rounds(zoo, tmp_path):
    config = replace(
        largest(zoo, "eagle2", row_invariant=True, max_new_tokens=40),
        target=f"{zoo / 'target'}@w8a8",
    )
    trace, models = record(config, tmp_path / "trace"), Models()
    for size, depth in ((3, 1), (8, 2), (20, 4), (60, 5)):
        draft = Eagle2(size, depth, 4)
        found, _ = decoded(replace(config, draft=draft), models)
        told = replay(trace, draft)
        assert found[COUNTS].to_numpy().tolist() == told[COUNTS].to_numpy().tolist()


def test_a_stopped_recording_goes_on_where_it_was(zoo, traces, tmp_path):
    config, told = largest(zoo, "refine"), []

    def stop(done, total, text):
        told.append((done, total))
        if text.startswith("prompt 3"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        record(config, tmp_path / "t", stop)
    assert len(read_trace(tmp_path / "t").head["n_positions"]) == 2
    assert told[0] == (0, 192) and told == sorted(told)
    whole = record(config, tmp_path / "t")
    assert whole.text.equals(traces["refine"].text)
    assert whole.states.equals(traces["refine"].states)
    # finished: nothing is asked again
    assert record(config, tmp_path / "t", stop).states.equals(whole.states)


def test_ranks_count_the_nodes_before_the_text():
    # two levels of top-2: the root's children 7 and 8, then those of 7 and of 8
    tokens = np.array([7, 8, 1, 2, 1, 3])
    scores = np.array([-0.1, -0.5, -0.6, -0.5, -0.9, -0.7], dtype=np.float32)
    parents = np.array([-1, -1, 0, 0, 1, 1])
    # rank_1_1, rank_2_1, rank_2_2; a tie goes to the lower number
    assert ranks_of(tokens, scores, parents, [7, 2], 2, 2) == [0, 0, 2]
    assert ranks_of(tokens, scores, parents, [8, 1], 2, 2) == [1, 1, 5]
    assert ranks_of(tokens, scores, parents, [8, 2], 2, 2) == [1, 1, -1]
    assert ranks_of(tokens, scores, parents, [4, 1], 2, 2) == [-1, -1, -1]


def test_places_are_those_of_the_heads_own_children(zoo, traces):
    trace = traces["eagle2"]
    states = trace.states.query("rank_5_1 >= 0")
    # within the first level's top_k, the place is the rank at depth 1
    assert (states["child_1"] == states["rank_1_1"]).all()
    # a node of the draft hangs where its parent has it among the first top_k
    deeper = trace.states.query("rank_5_2 >= 0")
    assert len(deeper) and deeper["child_2"].between(0, 3).all()


# ---- sampling --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Models over a vocabulary of two tokens."""
    root = tmp_path_factory.mktemp("two")
    sizes = {"vocab_size": 2, "num_hidden_layers": 1}
    for seed, name in enumerate(("target", "middle")):
        spell(make_model(root / name, scale=0.25, seed=seed, **sizes))
        make_head(root / f"{name}-eagle2", root / name, seed=seed, scale=0.25)
    return root


SAMPLED = {
    "eagle2": (lambda root: Eagle2(tree_size=2, depth=2, top_k=1), 3),
    "chain": (lambda root: Chain(str(root / "middle"), draft_len=2), 3),
    "hierarchy-of-one": (
        lambda root: Refine(str(root / "middle"), Eagle2(2, depth=1, top_k=1), at_least=1), 3),
    "hierarchy": (
        lambda root: Refine(str(root / "middle"), Eagle2(2, depth=1, top_k=1), at_least=2), 2),
    "hierarchy-greedy-middle": (
        lambda root: Refine(str(root / "middle"), Eagle2(2, depth=1, top_k=1), at_least=2,
                            sampling="greedy"), 3),
    "narrow-tree": (
        lambda root: Refine(str(root / "middle"), Eagle2(2, depth=1, top_k=1), at_least=1,
                            sampling="greedy", tree_size=4), 3),
}  # fmt: skip


@pytest.mark.parametrize("name", SAMPLED)
def test_replayed_rounds_of_a_sampled_text_follow_decodings_law(name, two):
    """Text and rounds together: every branch of recording against every branch of decoding."""
    make, n_tokens = SAMPLED[name]
    draft = make(two)
    config = Config(
        target=str(two / "target"),
        draft=draft,
        prompts=("01",),
        temperature=0.8,
        max_new_tokens=n_tokens,
        threads=1,
    )
    models = Models()
    verifier = build(config, models, 2)
    tokenizer = Tokenizer.from_file(str(two / "target" / "tokenizer.json"))

    def by_decoding(choose):
        level = verifier
        while level is not None:
            level.choose = choose
            level = getattr(level.drafter, "verifier", None)
        rounds = list(decode(verifier, [0, 1], TextStream(tokenizer), max_new_tokens=n_tokens))
        tokens = tuple(t for item in rounds for t in item.tokens)
        return tokens, tuple((r.n_proposed, r.n_accepted, r.n_emitted) for r in rounds[1:])

    longer = replace(config, max_new_tokens=recording._n_text(config))
    recorder = recording._Recorder(longer, 2)

    def by_replay(choose):
        recorder.choose = _Beginning(choose)
        recorder.plain.choose = choose
        tables = recorder.of_prompt(0, [0, 1], config, None, 1, "")
        facts = {"prompt_tokens": [2], "n_positions": [n_tokens], "conditions": {"date": ""}}
        head = recording.head_of(config, prompts=["01"]) | facts
        told = replay(Trace("walk", head, tables.text, tables.states), draft)
        tokens = tuple(tables.text["token"][:n_tokens])
        return tokens, tuple(map(tuple, told[COUNTS[3:]].to_numpy().tolist()))

    wanted, found = distribution_of(by_decoding), distribution_of(by_replay)
    assert len(wanted) > 3
    assert found == pytest.approx(wanted, abs=1e-5)


class _Beginning:
    """A chooser that takes note of no prompt."""

    def __init__(self, choose):
        self.choose = choose

    def begin(self, prompt):
        pass

    def __call__(self, probabilities):
        return self.choose(probabilities)


def test_a_seed_gives_a_text_and_another_seed_another(zoo, tmp_path):
    config = largest(zoo, "eagle2", temperature=1.0, max_new_tokens=20)
    first, again = (record(config, tmp_path / name) for name in ("a", "b"))
    other = record(replace(config, seed=1), tmp_path / "c")
    assert first.text.equals(again.text)
    assert not first.text["token"].equals(other.text["token"])


# ---- bad input -------------------------------------------------------------------------------


def test_what_cannot_be_replayed_is_refused_before_anything_is_decoded(zoo, traces, tmp_path):
    config = largest(zoo, "refine")
    middle = str(zoo / "middle")
    for wrong, words in (
        (replace(config, draft=None), "nothing to record"),
        (replace(config, draft=Refine(middle, Chain(middle, 2))), "a draft head below"),
        (replace(config, stop=("9",)), "leave out the stop"),
        (replace(config, max_new_tokens=250), "exceed the context"),
    ):
        with pytest.raises(ValueError, match=words):
            record(wrong, tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_a_folder_of_another_trace_is_refused(zoo, traces, tmp_path):
    trace = traces["eagle2"]
    write_trace(tmp_path / "t", trace.head, trace.text, trace.states)
    with pytest.raises(ValueError, match="holds a trace with seed"):
        record(replace(trace.config, seed=3), tmp_path / "t")


def test_a_damaged_trace_is_told_in_one_line(traces, tmp_path):
    trace = traces["eagle2"]
    write_trace(tmp_path / "t", trace.head, trace.text, trace.states)
    whole = (tmp_path / "t" / "states.parquet").read_bytes()
    (tmp_path / "t" / "states.parquet").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="states.parquet is missing, damaged or cut off"):
        read_trace(tmp_path / "t")
    (tmp_path / "t" / "trace.json").write_text("{")
    with pytest.raises(ValueError, match="trace.json is damaged"):
        read_trace(tmp_path / "t")
    with pytest.raises(ValueError, match="holds no acceptance trace"):
        read_trace(tmp_path)


def test_sizes_beyond_the_recorded_ones_are_refused(zoo, traces):
    middle = str(zoo / "middle")
    for kind, draft, words in (
        ("eagle2", Eagle2(9, 6, 4), "depths beyond 5"),
        ("eagle2", Eagle2(9, 3, 8), "another draft head or top_k"),
        ("eagle2", Chain(middle, 2), "another kind of drafter"),
        ("refine", Eagle2(9, 2, 4), "another kind of drafter"),
        ("refine", Chain(middle, 8), "at least 7 tokens were recorded"),
        ("refine", Chain(str(zoo / "small"), 3), "another model below"),
        ("chain", Refine(middle, Eagle2(9, 2, 4), 3), "another draft head"),
    ):
        with pytest.raises(ValueError, match=words):
            replay(traces[kind], draft)


def test_plain_decoding_is_one_token_a_round(traces):
    told = replay(traces["chain"])
    assert list(told.columns) == list(COLUMNS)
    assert (told["n_emitted"] == 1).all() and (told["n_proposed"] == 0).all()
    assert len(told) == len(PROMPTS) * 47
