"""Which settings a recorded text answers for, kind by kind, and how often their stages run."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property

from hspec_lab.acceptance import Totals
from hspec_lab.acceptance_folder import Trace
from hspec_lab.acceptance_grid import chain_grid, grid
from hspec_lab.config import Chain, Drafting, Eagle2, Refine, most_nodes
from hspec_lab.static_trees import propose, replay_static


@dataclass(frozen=True, slots=True, kw_only=True)
class Space:
    """Which sizes are searched; what a trace does not hold is left out.

    Attributes:
        tree_sizes: of dynamic and static trees.
        depths: None: all recorded.
        at_least: minimum draft lengths of a hierarchy; draft_lens: lengths of a chain.
        narrow: rows of a hierarchy's narrow trees.
        static: whether static trees are searched.
    """

    tree_sizes: tuple[int, ...] = (2, 3, 4, 6, 8, 10, 12, 16, 20, 24, 28, 32, 40, 48, 56, 64)
    depths: tuple[int, ...] | None = None
    at_least: tuple[int, ...] = tuple(range(1, 17))
    draft_lens: tuple[int, ...] = tuple(range(1, 17))
    narrow: tuple[int, ...] = (8, 16)
    static: bool = True


# few enough to be run one by one, all over the space
COARSE = Space(
    tree_sizes=(4, 8, 16, 32, 64),
    depths=(1, 2, 4, 6),
    at_least=(2, 4, 6, 10),
    draft_lens=(1, 2, 4, 6, 8, 12),
    narrow=(16,),
)


@dataclass(frozen=True)
class Kind:
    """Settings of one kind of drafter.

    Attributes:
        largest: a drafter that asks for all that they ask for.
        drafts: N of them; one may stand twice.
        count: makes a list of totals, of each prompt over all settings, or the other way round.
        by_setting: whether it is the other way round.
        warning: what a figure made with these must say.
    """

    largest: Drafting
    drafts: list[Drafting]
    count: Callable[[], list[Totals]]
    by_setting: bool = False
    warning: str = ""

    @cached_property
    def totals(self) -> list[Totals]:
        """What `count` makes, made once: every device prices the same."""
        return self.count()


def kinds(trace: Trace, space: Space, max_new_tokens: int | None = None) -> Iterator[Kind]:
    """All settings of a space that a trace answers for.

    Args:
        max_new_tokens: cuts each output; None: as recorded.
    """
    counted = trace.head["n_positions"]
    prompts = [of_prompts(trace, index, index + 1) for index, n in enumerate(counted) if n]
    limit = {"max_new_tokens": max_new_tokens}
    if isinstance(trace.draft, Chain | Refine):
        yield from _chains(trace, space, prompts, limit)
    depths = [d for d in space.depths or range(1, trace.depth + 1) if d <= trace.depth]
    if not depths:
        return
    heads = [replace(trace.eagle, tree_size=s, depth=d) for s in space.tree_sizes for d in depths]
    heads = [replace(head, tree_size=most_nodes(head)) for head in heads]
    asked = limit | {"tree_sizes": space.tree_sizes, "depths": depths}
    if isinstance(trace.draft, Refine):
        yield from _hierarchies(trace, space, prompts, heads, asked)
        return
    yield Kind(trace.draft, heads, lambda: [grid(one, **asked) for one in prompts])
    if space.static:
        trees = [tree for tree in propose(trace, space.tree_sizes, depths) if tree.depth]
        yield Kind(
            trace.draft,
            trees,
            lambda: [replay_static(trace, tree, **limit) for tree in trees],
            by_setting=True,
            warning="static trees are priced as EAGLE-2's of their size and depth",
        )


def of_prompts(trace: Trace, first: int, last: int) -> Trace:
    """What a trace says of its prompts `first` .. `last - 1`, as a trace of these alone."""
    lists = ("prompt_tokens", "n_positions", "prompts")
    head = trace.head | {name: trace.head[name][first:last] for name in lists}
    text, states = (
        table[table["prompt"].between(first, last - 1)]
        .assign(prompt=lambda rows: rows["prompt"] - first)
        .reset_index(drop=True)
        for table in (trace.text, trace.states)
    )
    return Trace(trace.name, head, text, states)


def _chains(trace: Trace, space: Space, prompts: list[Trace], limit: dict) -> Iterator[Kind]:
    draft = trace.draft
    longest = draft.draft_len if isinstance(draft, Chain) else draft.at_least
    if lens := [n for n in space.draft_lens if n <= longest]:
        chains = [Chain(draft.model, n) for n in lens]
        asked = limit | {"draft_lens": lens}
        yield Kind(chains[-1], chains, lambda: [chain_grid(one, **asked) for one in prompts])


def _hierarchies(
    trace: Trace, space: Space, prompts: list[Trace], heads: list[Eagle2], asked: dict
) -> Iterator[Kind]:
    draft = trace.draft
    lens = [n for n in space.at_least if n <= draft.at_least]
    # second choices are not drawn
    drawn = draft.sampling == "sample" and trace.config.temperature > 0
    for narrow in (None, *(() if drawn else space.narrow)) if lens else ():
        drafts = [
            replace(draft, draft=head, at_least=n, tree_size=narrow) for head in heads for n in lens
        ]
        more = asked | {"at_least": lens, "narrow": narrow}
        yield Kind(drafts[-1], drafts, lambda more=more: [grid(one, **more) for one in prompts])
