"""Evolution of bit widths: the optimum is known by enumeration, the budget is a promise."""

import itertools
import math
import random

import pytest

from hspec_lab.quantize.evopress import evopress

LEVELS = (2, 3, 4, 8)
SMALL = {"offspring": 12, "survivors": (4, 1), "tokens": (8, 64)}


def average(assignment, units, sizes):
    bits = sum(assignment[unit] * size for unit, size in zip(units, sizes, strict=True))
    return bits / sum(sizes)


class Landscape:
    """Errors of units, and of pairs that are worse (or better) together than alone."""

    def __init__(self, seed, n_units=6, interaction=4.0):
        draw = random.Random(seed)
        self.units = [f"layer{i}" for i in range(n_units)]
        self.sizes = [draw.choice([1, 2, 3, 5]) for _ in self.units]
        self.weight = {unit: draw.uniform(0.2, 3) for unit in self.units}
        self.pairs = {
            pair: draw.uniform(-interaction / 2, interaction)
            for pair in itertools.combinations(self.units, 2)
        }
        self.seen = []

    def __call__(self, assignment, n_tokens):
        self.seen.append(dict(assignment))
        damage = {unit: 2.0 ** -assignment[unit] for unit in self.units}
        alone = sum(self.weight[unit] * damage[unit] for unit in self.units)
        together = sum(w * damage[a] * damage[b] for (a, b), w in self.pairs.items())
        # few tokens know the loss with an error of their own
        noise = random.Random(f"{sorted(assignment.items())} {n_tokens}").gauss(0, 0.02)
        return alone + together + noise / n_tokens

    def feasible(self, target):
        for bits in itertools.product(LEVELS, repeat=len(self.units)):
            assignment = dict(zip(self.units, bits, strict=True))
            if average(assignment, self.units, self.sizes) <= target:
                yield assignment

    def best(self, target, n_tokens):
        return min(self(assignment, n_tokens) for assignment in self.feasible(target))

    def search(self, target, **options):
        options = SMALL | {"generations": 40} | options
        return evopress(self.units, self.sizes, LEVELS, target, self, **options)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("target", [2.5, 3.3, 4])
def test_the_optimum_known_by_enumeration_is_found(seed, target):
    landscape = Landscape(seed)
    found = landscape.search(target, seed=seed)
    assert found.fitness == pytest.approx(landscape.best(target, 64), rel=1e-12)
    assert landscape(found.assignment, 64) == found.fitness


@pytest.mark.parametrize("seed", range(4))
def test_a_mixed_assignment_beats_the_uniform_one(seed):
    landscape = Landscape(seed, n_units=20)
    uniform = landscape(dict.fromkeys(landscape.units, 3), 64)
    assert landscape.search(3, seed=seed).fitness < 0.98 * uniform


def test_interacting_units_are_not_found_by_sums_of_their_own_errors():
    """Two units are harmless at 2 bits each and ruinous together; a third is the worse alone."""
    units, sizes = ["a", "b", "c", "d"], [1, 1, 1, 1]
    alone = {"a": 0.1, "b": 0.1, "c": 0.3, "d": 0.9}

    def loss(assignment, n_tokens):
        low = {unit for unit in units if assignment[unit] == 2}
        return sum(alone[unit] for unit in low) + (5.0 if low >= {"a", "b"} else 0.0)

    two_low = [dict(zip(units, bits, strict=True)) for bits in itertools.product((2, 4), repeat=4)]
    two_low = [a for a in two_low if average(a, units, sizes) <= 3]
    by_sums = min(two_low, key=lambda a: sum(alone[u] for u in units if a[u] == 2))
    assert loss(by_sums, 1) == pytest.approx(5.2)
    found = evopress(units, sizes, (2, 4), 3.0, loss, generations=15, **SMALL)
    assert found.fitness == pytest.approx(0.4) and found.assignment["d"] == 4


def test_fewer_bits_are_kept_where_they_are_better():
    """A loss that is not monotone: the last unit is best at 3 bits, whatever is left over."""
    units = ["a", "b"]

    def loss(assignment, n_tokens):
        return abs(assignment["b"] - 3) + 1 / assignment["a"]

    found = evopress(units, [1, 1], LEVELS, 8, loss, generations=20, **SMALL)
    assert found.assignment == {"a": 8, "b": 3}


@pytest.mark.parametrize("seed", range(25))
def test_no_assignment_ever_exceeds_the_target(seed):
    draw = random.Random(seed)
    units = [str(i) for i in range(draw.randint(1, 12))]
    sizes = [draw.choice([1, 7, 300, 4096 * 11008]) for _ in units]
    levels = tuple(sorted(draw.sample([1, 2, 3, 4, 5, 6, 8, 16], draw.randint(1, 4))))
    target = draw.choice([levels[0], levels[-1], round(draw.uniform(levels[0], levels[-1]), 2)])
    seen = []

    def loss(assignment, n_tokens):
        seen.append(average(assignment, units, sizes))
        assert set(assignment.values()) <= set(levels)
        return draw.random()

    found = evopress(units, sizes, levels, target, loss, generations=6, seed=seed, **SMALL)
    assert max(seen) <= target
    assert found.history[-1].average_bits == average(found.assignment, units, sizes)


def test_the_start_uses_the_target_up():
    units = [str(i) for i in range(50)]
    found = evopress(
        units, [1] * 50, (2, 4), 2.28, lambda a, n: -sum(a.values()), generations=0, **SMALL
    )
    # as the target is written, not as a product rounds: 50 * 2.28 < 114
    assert found.history[0].average_bits == 2.28 and len(found.history) == 1


def test_the_start_is_uniform_where_more_bits_do_not_help():
    found = evopress(
        ["a", "b"], [1, 1], LEVELS, 3.5, lambda a, n: sum(a.values()), generations=0, **SMALL
    )
    assert found.assignment == {"a": 3, "b": 3}


def test_units_that_only_help_together_are_changed_together():
    """From a, b to c, d at 4 bits there is no step that does not make it worse."""
    losses = {("a", "b"): 1.0, ("c", "d"): 0.5}

    def loss(assignment, n_tokens):
        return losses.get(tuple(unit for unit in "abcd" if assignment[unit] == 4), 3.0)

    start = {"a": 4, "b": 4, "c": 2, "d": 2}
    found = evopress(list("abcd"), [1] * 4, (2, 4), 3, loss, start=start, generations=20, **SMALL)
    assert found.fitness == 0.5


def test_a_large_unit_is_exchanged_for_many_small_ones():
    """One or three of the four small ones in its place are worse than the large one."""
    worth = {"large": 0.9} | dict.fromkeys("abcd", 0.28)

    def loss(assignment, n_tokens):
        return sum(worth[unit] for unit, bits in assignment.items() if bits == 2)

    start = {"large": 4} | dict.fromkeys("abcd", 2)
    found = evopress(
        list(worth), [4, 1, 1, 1, 1], (2, 4), 3, loss, start=start, generations=20, **SMALL
    )
    assert found.assignment == {"large": 2} | dict.fromkeys("abcd", 4)


def test_the_same_seed_searches_the_same_way_and_another_does_not():
    seen = []
    for seed in (3, 3, 4):
        landscape = Landscape(0)
        landscape.search(3.3, seed=seed, generations=5)
        seen.append(landscape.seen)
    assert seen[0] == seen[1] != seen[2]


def test_a_stopped_search_goes_on_as_if_it_had_not_stopped():
    kept = []
    whole = Landscape(1).search(3.3, generations=12, progress=kept.append)
    assert [len(result.history) for result in kept] == list(range(1, 14))
    assert kept[-1] == whole
    for stopped in (kept[0], kept[5], whole):
        assert Landscape(1).search(3.3, generations=12, start=stopped) == whole


def test_a_parent_that_is_given_is_never_made_worse():
    landscape = Landscape(2)
    best = min(landscape.feasible(3.3), key=lambda assignment: landscape(assignment, 64))
    found = landscape.search(3.3, start=best, generations=10)
    assert found.assignment == best
    assert found.history[0].tokens == 8 + 64


def test_losses_never_rise_and_generations_say_what_they_read():
    history = Landscape(3, n_units=12).search(3.3, generations=30).history
    losses = [generation.fitness for generation in history]
    assert losses == sorted(losses, reverse=True) and losses[-1] < losses[0]
    assert [generation.number for generation in history] == list(range(31))
    # twelve offspring on 8 tokens, four of them on 64
    assert history[1].tokens == 12 * 8 + 4 * 64


def test_early_stages_only_drop_and_the_last_decides_against_the_parent():
    """On few tokens the loss has the wrong sign; what is best there may not replace the parent."""

    def misleading(assignment, n_tokens):
        return sum(assignment.values()) if n_tokens > 8 else -sum(assignment.values())

    start = {"a": 2, "b": 2, "c": 2}
    found = evopress(
        list(start), [1, 1, 1], LEVELS, 4, misleading, start=start, generations=10, **SMALL
    )
    assert found.assignment == start


@pytest.mark.parametrize("seed", range(8))
def test_a_loss_that_is_no_number_loses(seed):
    units = list("abcde")

    def loss(assignment, n_tokens):
        finite = assignment["a"] == 2 and assignment["b"] == 2
        return sum(2.0**-bits for bits in assignment.values()) if finite else math.nan

    found = evopress(units, [1] * 5, LEVELS, 3, loss, generations=25, seed=seed, **SMALL)
    assert found.fitness == loss(dict(zip(units, [2, 2, 3, 4, 4], strict=True)), 1)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"target_bits": 1.9}, "1.9 bits is not within"),
        ({"target_bits": 9}, "9 bits is not within"),
        ({"sizes": [1]}, "names and sizes"),
        ({"units": ["a", "a"]}, "names and sizes"),
        ({"survivors": (4, 2)}, "fall from the 12 offspring to 1"),
        ({"survivors": (1, 4, 1), "tokens": (1, 2, 3)}, "fall from the 12"),
        ({"survivors": (20, 1)}, "fall from the 12"),
        ({"survivors": (), "tokens": ()}, "fall from the 12"),
        ({"tokens": (64, 8)}, "tokens rise"),
        ({"tokens": (8,)}, "one of each a stage"),
        ({"start": {"a": 2}}, "start must give each unit"),
        ({"start": {"a": 8, "b": 8}}, "start has 8 bits, the target is 3"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(options, told):
    fixed = {"units": ["a", "b"], "sizes": [1, 1], "levels": LEVELS, "target_bits": 3}
    with pytest.raises(ValueError, match=told) as refused:
        evopress(**(fixed | {"fitness": lambda a, n: 0.0} | SMALL | options))
    assert "\n" not in str(refused.value)


def test_a_result_above_the_target_is_no_start():
    found = Landscape(0).search(4, generations=2)
    with pytest.raises(ValueError, match="start has .* bits, the target is 2.1"):
        Landscape(0).search(2.1, start=found)
