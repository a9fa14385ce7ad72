"""What a panel on a page shows, held against what the library says of the same settings."""

import pytest
from panel import Panel

from hspec_lab.config import Config
from hspec_lab.terms import ROUND_PHASES
from hspec_lab.widgets.answers import Answers
from hspec_lab.widgets.choice import Choice, from_query
from hspec_lab.widgets.known import Known


def choice_of(panel: Panel) -> Choice:
    """The settings that a panel spells in its line."""
    return from_query(panel.state, Choice())


def says_what_the_library_says(panel: Panel, answers: Answers) -> bool:
    """Whether bars, marks and the line are those of the settings that the panel spells."""
    choice = choice_of(panel)
    answers.prepare(choice)
    found = answers.prediction(choice)
    phases = found.phases.set_index("phase")["us_per_emitted"]
    return (
        panel.own_bar("predicted") == pytest.approx(_by_phase(phases), rel=1e-6)
        and panel.current("speedup") == pytest.approx([choice.tree_size, found.speedup])
        and panel.current("acceptance") == [choice.tree_size, choice.depth]
        and f"{found.tokens_per_s:.0f} tokens/s" in panel.status
    )


def stored_us(known: Known, config: Config) -> dict[str, float]:
    """us per emitted token of a stored run, by phase."""
    return _by_phase(known.find(config).phases.set_index("phase")["us_per_emitted"])


def _by_phase(us) -> dict[str, float]:
    # a gap may come out a little below nothing
    return {phase: max(float(us.get(phase, 0.0)), 0.0) for phase in ROUND_PHASES}
