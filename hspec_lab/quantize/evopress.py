"""Bits of each unit by evolution: change a few, keep the best, never exceed the average.

The loss of a mixed model is not the sum of its units' losses: two units that are harmless at 2
bits each may ruin the model together.  So whole assignments are compared, by a fitness that
runs the model.  A generation makes many offspring of one parent and drops most of them after few
calibration tokens, most of the rest after more; only the last few meet the parent on many.

A mutation raises one to three units by a level each, then lowers some until the average is within
the target, and every other time fills up what that left free.  One in eight only lowers a unit.

    cost    per generation  sum of (offspring that reach a stage) * (its tokens)
    source  Sieberling et al. 2024, arXiv 2410.14649
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from random import Random

# (bits of each unit, calibration tokens) -> loss; the same for the same arguments
Fitness = Callable[[dict[str, int], int], float]
Genes = tuple[int, ...]  # an index into the levels for each unit

_TRIES_PER_OFFSPRING = 20
_MOST_RAISES = 3
_ONLY_LOWERED = 0.125


@dataclass(frozen=True, slots=True)
class Generation:
    """What one generation came to.

    Attributes:
        number: 0 for the start.
        fitness: of the parent it left, on the last stage's tokens.
        average_bits: of that parent.
        tokens: calibration tokens that its evaluations read.
    """

    number: int
    fitness: float
    average_bits: float
    tokens: int


@dataclass(frozen=True, slots=True)
class EvoResult:
    """The best assignment so far and how it was found; another search can `start` from it."""

    assignment: dict[str, int]
    fitness: float
    history: tuple[Generation, ...]


@dataclass(frozen=True, slots=True)
class _Space:
    """Assignments whose average is within the target."""

    sizes: tuple[int, ...]
    levels: tuple[int, ...]
    target_bits: float

    def average(self, genes: Genes, more_bits: int = 0) -> float:
        """Mean bits of a weight, with so many bits more in all."""
        bits = sum(size * self.levels[g] for size, g in zip(self.sizes, genes, strict=True))
        # a quotient rounds to the very number a target is written as; a product may miss it
        return (bits + more_bits) / sum(self.sizes)

    def fits(self, genes: Genes) -> bool:
        return self.average(genes) <= self.target_bits

    def raisable(self, genes: Genes) -> list[int]:
        return [unit for unit, g in enumerate(genes) if g < len(self.levels) - 1]

    def filled(self, genes: Genes, random: Random) -> Genes:
        """Raise units drawn at random as long as any fits."""
        fitting = self.raisable(genes)
        while fitting:
            unit = random.choice(fitting)
            step = self.levels[genes[unit] + 1] - self.levels[genes[unit]]
            if fits := self.average(genes, self.sizes[unit] * step) <= self.target_bits:
                genes = _moved(genes, unit, 1)
            # what does not fit now never will, because bits only grow
            if not fits or genes[unit] == len(self.levels) - 1:
                fitting.remove(unit)
        return genes

    def mutated(self, parent: Genes, random: Random) -> Genes:
        """Raise a few units, lower some until the average is within the target."""
        if random.random() < _ONLY_LOWERED:
            lowerable = _lowerable(parent)
            return _moved(parent, random.choice(lowerable), -1) if lowerable else parent
        genes = parent
        for _ in range(min(random.randint(1, _MOST_RAISES), random.randint(1, _MOST_RAISES))):
            if raisable := self.raisable(genes):
                genes = _moved(genes, random.choice(raisable), 1)
        while not self.fits(genes):
            genes = _moved(genes, random.choice(_lowerable(genes)), -1)
        return self.filled(genes, random) if random.random() < 0.5 else genes


def _lowerable(genes: Genes) -> list[int]:
    return [unit for unit, g in enumerate(genes) if g > 0]


def _moved(genes: Genes, unit: int, by: int) -> Genes:
    return (*genes[:unit], genes[unit] + by, *genes[unit + 1 :])


def evopress(
    units: list[str],
    sizes: list[int],
    levels: tuple[int, ...],
    target_bits: float,
    fitness: Fitness,
    *,
    generations: int = 50,
    offspring: int = 32,
    survivors: tuple[int, ...] = (8, 2, 1),
    tokens: tuple[int, ...] = (512, 2048, 8192),
    seed: int = 0,
    progress: Callable[[EvoResult], None] | None = None,
    start: EvoResult | dict[str, int] | None = None,
) -> EvoResult:
    """Search the assignment of bits to units with the least fitness.

    Args:
        units: names.
        sizes: weights of each unit.
        levels: bits that a unit may have.
        target_bits: what the average over weights may be at most.
        fitness: the loss of an assignment on so many calibration tokens, the lower the better; the
            same for the same arguments.  NaN counts as infinite.
        generations: of the whole search, those of `start` included.
        offspring: how many a generation makes, where there are as many.
        survivors: how many each stage keeps; the last keeps one.
        tokens: how many each stage reads.
        seed: with the same arguments, the same search.
        progress: is handed the result so far after each generation, a possible `start`.
        start: a result to go on from, as if the search had never stopped, or a first parent.

    Returns:
        result: never worse than its start on the last stage's tokens.

    Raises:
        ValueError: arguments that do not fit each other; a target that no assignment meets.
    """
    levels = tuple(sorted(levels))
    _check(units, sizes, levels, target_bits)
    _check_stages(offspring, survivors, tokens)
    search = _Search(units, _Space(tuple(sizes), levels, target_bits), fitness, survivors, tokens)
    result = search.resumed(start) if isinstance(start, EvoResult) else None
    for number in range(len(result.history) if result else 0, generations + 1):
        # each generation draws from a seed of its own, so that none depends on how it was reached
        random = Random(f"{seed} {number}")
        step = search.next if result else search.first
        result = step(result or start, offspring, random)
        if progress:
            progress(result)
    return result


@dataclass(frozen=True, slots=True)
class _Search:
    units: list[str]
    space: _Space
    fitness: Fitness
    survivors: tuple[int, ...]
    tokens: tuple[int, ...]

    def named(self, genes: Genes) -> dict[str, int]:
        bits = (self.space.levels[g] for g in genes)
        return dict(zip(self.units, bits, strict=True))

    def genes(self, assignment: dict[str, int]) -> Genes:
        levels = self.space.levels
        if assignment.keys() != set(self.units) or not set(assignment.values()) <= set(levels):
            raise ValueError(f"evopress: start must give each unit one of {levels}: {assignment}")
        genes = tuple(levels.index(assignment[unit]) for unit in self.units)
        if (bits := self.space.average(genes)) > (target := self.space.target_bits):
            raise ValueError(f"evopress: start has {bits:.6g} bits, the target is {target:g}")
        return genes

    def loss(self, genes: Genes, n_tokens: int) -> float:
        loss = float(self.fitness(self.named(genes), n_tokens))
        return math.inf if math.isnan(loss) else loss

    def resumed(self, start: EvoResult) -> EvoResult:
        """Another search's result, its fitness measured as this one measures."""
        return replace(start, fitness=self.loss(self.genes(start.assignment), self.tokens[-1]))

    def first(self, start: dict[str, int] | None, offspring: int, random: Random) -> EvoResult:
        """Generation 0: what was given, or the best of a uniform level and its random fillings."""
        if start is not None:
            return self._selected([self.genes(start)], None, ())
        level = max(i for i, bits in enumerate(self.space.levels) if bits <= self.space.target_bits)
        uniform = (level,) * len(self.units)
        drawn = (self.space.filled(uniform, random) for _ in range(offspring))
        return self._selected(list(dict.fromkeys([uniform, *drawn])), None, ())

    def next(self, result: EvoResult, offspring: int, random: Random) -> EvoResult:
        """One generation more."""
        parent = self.genes(result.assignment)
        candidates = list(self._offspring(parent, offspring, random))
        return self._selected(candidates, (parent, result.fitness), result.history)

    def _offspring(self, parent: Genes, count: int, random: Random) -> Iterator[Genes]:
        """Different from the parent and each other; fewer where the space holds no more."""
        seen = {parent}
        for _ in range(count * _TRIES_PER_OFFSPRING):
            child = self.space.mutated(parent, random)
            if child not in seen:
                seen.add(child)
                yield child
            if len(seen) > count:
                return

    def _selected(self, candidates: list, parent: tuple | None, history: tuple) -> EvoResult:
        """Stage by stage the best on more tokens; the parent is met by those of the last."""
        read, losses = 0, []
        for keep, n_tokens in zip(self.survivors, self.tokens, strict=True):
            read += n_tokens * len(candidates)
            losses = [(genes, self.loss(genes, n_tokens)) for genes in candidates]
            losses = sorted(losses, key=lambda pair: pair[1])[:keep]
            candidates = [genes for genes, _ in losses]
        # of equals the child: a plateau can be crossed
        genes, loss = min([*losses, parent] if parent else losses, key=lambda pair: pair[1])
        this = Generation(len(history), loss, self.space.average(genes), read)
        return EvoResult(self.named(genes), loss, (*history, this))


def _check(units: list[str], sizes: list[int], levels: tuple[int, ...], target: float) -> None:
    if not units or len(set(units)) != len(units) or len(units) != len(sizes):
        raise ValueError(f"evopress: units need names and sizes, got {units} and {sizes}")
    if not levels or not levels[0] <= target <= levels[-1]:
        raise ValueError(f"evopress: a target of {target:g} bits is not within levels {levels}")


def _check_stages(offspring: int, survivors: tuple[int, ...], tokens: tuple[int, ...]) -> None:
    falling, rising = [offspring, *survivors], [1, *tokens]
    ordered = falling == sorted(falling, reverse=True) and rising == sorted(rising)
    if not ordered or list(survivors[-1:]) != [1] or len(tokens) != len(survivors):
        raise ValueError(
            f"evopress: survivors fall from the {offspring} offspring to 1 and tokens rise, one of "
            f"each a stage; got survivors {survivors} and tokens {tokens}"
        )
