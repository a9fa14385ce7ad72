"""Decoding: every method gives plain decoding's text, and sampling the target's distribution."""

import itertools
from unittest.mock import patch

import pytest
import torch
from test_accept import distribution_of
from tiny import make_head, make_model, make_zoo, spell
from tokenizers import Tokenizer

from hspec_lab.config import CPU_FORMATS, Chain, Config, Eagle2, Refine
from hspec_lab.decode import decode
from hspec_lab.experiment import Session
from hspec_lab.model import Checkpoint, Transformer
from hspec_lab.pipeline import Models, build
from hspec_lab.text import TextStream
from hspec_lab.trace import Recorder

PROMPTS = ("012345678", "ABCDE<=>?@", "Q", "LLLLLLLL")


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    """Target, two smaller models and heads; random, and alike enough to agree now and then."""
    return make_zoo(tmp_path_factory.mktemp("zoo"))


def drafts(root):
    middle, small = str(root / "middle"), str(root / "small")
    tree = Eagle2(tree_size=12, depth=3, top_k=4)
    return {
        "chain": Chain(middle, draft_len=5),
        "chain-of-one": Chain(middle, draft_len=1),
        "eagle2": tree,
        "eagle2-root-only": Eagle2(tree_size=1, depth=1, top_k=1),
        "eagle2-wide": Eagle2(tree_size=60, depth=6, top_k=8),
        "hierspec": Refine(middle, tree, at_least=6),
        "hierspec-short": Refine(middle, tree, at_least=1),
        "hierspec-of-chain": Refine(middle, Chain(small, draft_len=3), at_least=4),
        "three-levels": Refine(middle, Refine(small, tree, at_least=3), at_least=5),
        "narrow-tree": Refine(middle, tree, at_least=4, tree_size=16),
        "narrow-tree-too-small-for-leaves": Refine(middle, tree, at_least=6, tree_size=3),
        "narrow-trees-on-two-levels": Refine(
            middle, Refine(small, tree, at_least=3, tree_size=7), at_least=5, tree_size=16
        ),
        "the-target-drafts-for-itself": Chain(str(root / "target"), draft_len=7),
        "refined-by-the-target-itself": Refine(str(root / "target"), tree, at_least=4),
    }


def outputs(config, models):
    session = Session(config, models)
    for index in range(len(session.prompts)):
        for _ in session.rounds_of(index):
            pass
    return [session.output_ids(index) for index in range(len(session.prompts))], session


@pytest.mark.parametrize("name", drafts(__import__("pathlib").Path()))
def test_every_method_gives_the_plain_greedy_text(name, zoo):
    models = Models()
    settings = {"prompts": PROMPTS, "max_new_tokens": 60, "threads": 1}
    plain, _ = outputs(Config(target=str(zoo / "target"), **settings), models)
    config = Config(target=str(zoo / "target"), draft=drafts(zoo)[name], **settings)
    drafted, session = outputs(config, models)
    assert drafted == plain
    rounds = [item for rounds in session.rounds.values() for item in rounds[1:]]
    assert all(item.n_emitted == item.n_accepted + 1 for item in rounds if not item.finished)
    if "target" in name:  # a draft by the same weights is accepted whole
        assert all(item.n_accepted == item.n_proposed for item in rounds if not item.finished)


def test_a_narrow_tree_offers_second_choices_where_the_model_was_least_sure(zoo):
    models, middle = Models(), str(zoo / "middle")
    settings = {"target": str(zoo / "target"), "threads": 1, "max_new_tokens": 40}
    draft = Refine(middle, Eagle2(tree_size=12, depth=3, top_k=4), at_least=4, tree_size=8)
    verifier = build(Config(draft=draft, **settings), models, 4)
    alone = models.transformer(middle, False, "cpu")
    with torch.inference_mode():
        verifier.start([3, 1, 4, 1])
        for _ in range(4):
            proposal, text = verifier.drafter.propose(), list(verifier.tokens)
            tree = proposal.tree
            n = next((i for i in range(1, len(tree)) if tree.parents[i] != i - 1), len(tree))
            assert len(tree) == max(n, 8) and n > 4
            # the model itself, asked again over text and chain
            logits = alone.logits(alone.read(text + tree.tokens[1:n], alone.new_cache(80)))
            two = logits[len(text) - 1 : len(text) + n - 2].topk(2)
            assert two.indices[:, 0].tolist() == tree.tokens[1:n]
            margins = two.values[:, 0] - two.values[:, 1]
            least = margins.argsort(stable=True)[: len(tree) - n].tolist()
            assert tree.parents[n:] == least
            assert tree.tokens[n:] == two.indices[least, 1].tolist()
            with patch.object(verifier.drafter, "propose", return_value=proposal):
                verifier.round()


def test_second_choices_raise_what_a_round_emits(zoo):
    settings = {"prompts": PROMPTS, "max_new_tokens": 60, "threads": 1}
    emitted = {}
    for size in (None, 16):
        tree = Eagle2(tree_size=12, depth=3, top_k=4)
        draft = Refine(str(zoo / "middle"), tree, at_least=4, tree_size=size)
        config = Config(target=str(zoo / "target"), draft=draft, **settings)
        _, session = outputs(config, Models())
        rounds = [item for rounds in session.rounds.values() for item in rounds[1:]]
        emitted[size] = sum(item.n_emitted for item in rounds) / len(rounds)
    assert emitted[16] > emitted[None]


def test_levels_of_a_deep_hierarchy_have_names_of_their_own(zoo):
    draft = Chain(str(zoo / "small"), draft_len=1)
    for _ in range(3):
        draft = Refine(str(zoo / "small"), draft, at_least=1)
    verifier = build(Config(target=str(zoo / "target"), draft=draft, threads=1), Models(), 4)
    names = []
    while verifier is not None:
        names.append(verifier.level)
        verifier = getattr(verifier.drafter, "verifier", None)
    assert names == ["target", *(f"intermediate{n}" for n in ("", 2, 3, 4))]


def test_the_random_zoo_accepts_and_rejects(zoo):
    # the test above would prove little if every draft were rejected
    config = Config(
        target=str(zoo / "target"), draft=drafts(zoo)["hierspec"], prompts=PROMPTS, threads=1
    )
    _, session = outputs(config, Models())
    kept = [item.n_accepted for rounds in session.rounds.values() for item in rounds[1:]]
    assert 0 in kept and max(kept) >= 2


@pytest.mark.parametrize("format", CPU_FORMATS)
@pytest.mark.parametrize("name", ["chain", "eagle2", "hierspec", "narrow-tree"])
def test_row_invariant_text_is_equal_at_every_format(name, format, zoo):
    models = Models()
    settings = {"prompts": PROMPTS[:2], "max_new_tokens": 40, "threads": 1, "row_invariant": True}
    target = f"{zoo / 'target'}@{format}"
    plain, _ = outputs(Config(target=target, **settings), models)
    drafted, _ = outputs(Config(target=target, draft=drafts(zoo)[name], **settings), models)
    assert drafted == plain


def test_every_phase_is_recorded_and_phases_fill_the_round(zoo):
    config = Config(
        target=str(zoo / "target"), draft=drafts(zoo)["hierspec"], prompts=PROMPTS, threads=1
    )
    _, session = outputs(config, Models())
    tables = session.tables()
    in_rounds = tables["spans"][tables["spans"]["round"] >= 0]
    assert set(in_rounds["phase"]) == {
        "draft", "verify_intermediate", "verify_target", "accept", "kv_commit",
    }  # fmt: skip
    assert set(tables["spans"][tables["spans"]["round"] < 0]["phase"]) == {"prefill"}
    levels = tables["spans"].groupby("phase")["level"].agg(set)
    assert levels["draft"] == {"head"} and levels["accept"] == {"target", "intermediate"}
    covered = in_rounds["duration_us"].sum() / tables["rounds"]["duration_us"].sum()
    assert 0.9 < covered <= 1
    assert set(tables["tokens"]["source"]) <= {"head", "intermediate", "target"}
    lengths = tables["tokens"].groupby("prompt").size()
    assert (lengths == config.max_new_tokens).all()


def single(config, models, prompt, recorder=None, choose=None, stop=(), eos_ids=()):
    verifier = build(config, models, len(prompt), choose=choose)
    stream = TextStream(Tokenizer.from_file(str(verifier.model.folder / "tokenizer.json")), stop)
    options = {"recorder": recorder} if recorder else {}
    return list(
        decode(
            verifier,
            prompt,
            stream,
            max_new_tokens=config.max_new_tokens,
            eos_ids=eos_ids,
            **options,
        )
    )


def test_eos_inside_an_accepted_block_cuts_text_and_counts(zoo):
    config = Config(
        target=str(zoo / "target"), draft=drafts(zoo)["the-target-drafts-for-itself"], threads=1
    )
    models, recorder = Models(), Recorder()
    whole = [t for item in single(config, models, [1, 2, 3]) for t in item.tokens]
    # a token that comes up first in the middle of a round's block
    eos = next(
        t for i, t in enumerate(whole) if i > 2 and whole.index(t) == i and i % 8 not in (0, 1)
    )
    rounds = single(config, models, [1, 2, 3], recorder, eos_ids=(eos,))
    tokens = [t for item in rounds for t in item.tokens]
    assert tokens == whole[: whole.index(eos) + 1]
    assert rounds[-1].finished == "eos"
    assert rounds[-1].n_emitted < 8
    assert recorder.tables()["rounds"]["n_emitted"].iloc[-1] == rounds[-1].n_emitted


def test_the_token_limit_is_met_exactly(zoo):
    for limit in (1, 2, 9):
        config = Config(
            target=str(zoo / "target"),
            draft=drafts(zoo)["the-target-drafts-for-itself"],
            max_new_tokens=limit,
            threads=1,
        )
        rounds = single(config, Models(), [1, 2, 3])
        assert sum(item.n_emitted for item in rounds) == limit
        assert rounds[-1].finished == "length"


def test_a_stop_text_is_cut_off_even_across_tokens_and_rounds(zoo):
    models = Models()
    config = Config(target=str(zoo / "target"), threads=1)
    whole = "".join(item.text for item in single(config, models, [1, 2, 3]))
    stop = whole[5:8]
    for name in ("chain", "eagle2", "hierspec"):
        drafted = Config(target=str(zoo / "target"), draft=drafts(zoo)[name], threads=1)
        rounds = single(drafted, models, [1, 2, 3], stop=(stop, "never"))
        assert "".join(item.text for item in rounds) == whole[: whole.index(stop)]
        assert rounds[-1].finished == "stop"


# ---- sampling: exact at any depth ------------------------------------------------------------


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    """Models over a vocabulary of three tokens."""
    root = tmp_path_factory.mktemp("three")
    sizes = {"vocab_size": 3, "num_hidden_layers": 1}
    for seed, name in enumerate(("target", "middle", "small")):
        spell(make_model(root / name, scale=0.25, seed=seed, **sizes))
        make_head(root / f"{name}-eagle2", root / name, seed=seed, scale=0.25)
    return root


SAMPLED = {
    "ar": lambda root: None,
    "chain": lambda root: Chain(str(root / "middle"), draft_len=2),
    "tree": lambda root: Eagle2(tree_size=5, depth=2, top_k=2),
    "hierarchy": lambda root: Refine(
        str(root / "middle"), Eagle2(tree_size=3, depth=2, top_k=2), at_least=2
    ),
    "hierarchy-greedy-middle": lambda root: Refine(
        str(root / "middle"),
        Eagle2(tree_size=3, depth=2, top_k=2),
        at_least=2,
        sampling="greedy",
    ),
    "narrow-tree": lambda root: Refine(
        str(root / "middle"),
        Eagle2(tree_size=3, depth=2, top_k=2),
        at_least=1,
        sampling="greedy",
        tree_size=5,
    ),
    "three-levels": lambda root: Refine(
        str(root / "middle"), Chain(str(root / "small"), draft_len=1), at_least=1
    ),
}
N_TOKENS = 3


def sampled(root, draft, models):
    """Distribution over the first tokens of sampled decoding, every branch walked."""
    config = Config(
        target=str(root / "target"),
        draft=draft,
        temperature=0.8,
        max_new_tokens=N_TOKENS,
        threads=1,
    )
    # one verifier for all walks: starting again must forget everything
    verifier = build(config, models, 2)
    tokenizer = Tokenizer.from_file(str(root / "target" / "tokenizer.json"))

    def run(choose):
        point_at(verifier, choose)
        rounds = decode(verifier, [0, 2], TextStream(tokenizer), max_new_tokens=N_TOKENS)
        return tuple(t for item in rounds for t in item.tokens)

    return distribution_of(run)


def point_at(verifier, choose):
    """Hand a chooser to every level."""
    while verifier is not None:
        verifier.choose = choose
        verifier = getattr(verifier.drafter, "verifier", None)


@pytest.fixture(scope="module")
def exact(three):
    """The target's own distribution over its next tokens."""
    model = Transformer(Checkpoint(three / "target"), "fp32")
    found = {}
    for tokens in itertools.product(range(3), repeat=N_TOKENS):
        cache = model.new_cache(8)
        logits = model.logits(model.read([0, 2, *tokens], cache))
        p = torch.softmax(logits / 0.8, dim=-1)
        found[tokens] = float(p[1:4].gather(1, torch.tensor(tokens)[:, None]).prod())
    return found


@pytest.mark.parametrize("name", SAMPLED)
def test_sampling_keeps_the_targets_distribution(name, three, exact):
    found = sampled(three, SAMPLED[name](three), Models())
    assert found == pytest.approx(exact, abs=1e-5)


@pytest.mark.parametrize("name", ["chain", "hierarchy"])
def test_a_wrong_p_draft_breaks_the_distribution(name, three, exact, monkeypatch):
    from dataclasses import replace

    from hspec_lab.draft import RefineDrafter

    honest = RefineDrafter.propose

    def flattened(self):
        proposal = honest(self)
        return replace(proposal, p_draft=torch.full_like(proposal.p_draft, 1 / 3))

    monkeypatch.setattr(RefineDrafter, "propose", flattened)
    found = sampled(three, SAMPLED[name](three), Models())
    assert max(abs(found.get(t, 0.0) - p) for t, p in exact.items()) > 1e-3


def test_the_same_seed_gives_the_same_text_and_another_seed_another(zoo):
    def text(seed):
        config = Config(
            target=str(zoo / "target"),
            draft=drafts(zoo)["hierspec"],
            temperature=1.0,
            seed=seed,
            prompts=PROMPTS[:1],
            threads=1,
        )
        return outputs(config, Models())[0]

    assert text(1) == text(1) != text(2)


def test_what_is_drawn_depends_on_seed_and_prompt_not_on_what_came_before(zoo):
    config = Config(
        target=str(zoo / "target"), temperature=1.0, prompts=PROMPTS, threads=1, max_new_tokens=20
    )
    alone, after = Session(config), Session(config)
    after.warm_up()
    for session, order in ((alone, [2]), (after, [0, 1, 2, 2])):
        for index in order:
            for _ in session.rounds_of(index):
                pass
    assert alone.output_ids(2) == after.output_ids(2)


def test_an_abandoned_decoding_leaves_nothing_behind(zoo, tmp_path):
    config = Config(
        target=str(zoo / "target"), draft=drafts(zoo)["hierspec"], prompts=PROMPTS, threads=1
    )
    session = Session(config)
    abandoned = session.rounds_of(1)
    for _ in range(3):
        next(abandoned)
    abandoned.close()
    for _ in session.rounds_of(0):
        pass
    tables = session.tables()
    assert all(set(table["prompt"]) == {0} for table in tables.values())
    session.write(tmp_path)  # and what is left can be stored


def test_two_decodings_at_once_on_one_session_are_refused(zoo):
    session = Session(Config(target=str(zoo / "target"), prompts=PROMPTS, threads=1))
    one = session.rounds_of(0)
    next(one)
    next(session.rounds_of(1))
    with pytest.raises(RuntimeError, match="one at a time"):
        next(one)


@pytest.mark.parametrize("draft", [{}, {"draft": "chain"}])
def test_padding_behind_the_tokenizers_entries_is_never_emitted(zoo, tmp_path, draft):
    """A target whose output layer has 8 rows more than the tokenizer has entries."""
    sizes = {"hidden_size": 128, "intermediate_size": 128}
    padded = make_model(tmp_path / "padded", scale=0.05, vocab_size=40, **sizes)
    text = (zoo / "middle" / "tokenizer.json").read_text()
    (padded / "tokenizer.json").write_text(text)
    drafter = Chain(str(zoo / "middle"), 4) if draft else None
    config = Config(target=str(padded), draft=drafter, prompts=PROMPTS, threads=1, temperature=2.0)
    ids, _ = outputs(config, Models())
    assert max(max(output) for output in ids) < 32


# ---- trees ---------------------------------------------------------------------------------


def test_eagle2_keeps_a_nodes_parent_and_the_most_probable_nodes(zoo):
    config = Config(target=str(zoo / "target"), draft=drafts(zoo)["eagle2"], threads=1)
    verifier = build(config, Models(), 8)
    with torch.inference_mode():
        verifier.start([1, 2, 3])
        proposals = []
        for size in (1, 2, 5, 12, 21):
            verifier.drafter.tree_size = size
            proposals.append(verifier.drafter.propose().tree)
    for tree, size in zip(proposals, (1, 2, 5, 12, 21), strict=True):
        assert len(tree) == size and max(tree.depths) <= 3
    for smaller, larger in itertools.pairwise(proposals):
        paths = {tuple(larger.tokens[i] for i in larger.path(n)) for n in range(len(larger))}
        assert {
            tuple(smaller.tokens[i] for i in smaller.path(n)) for n in range(len(smaller))
        } <= paths
