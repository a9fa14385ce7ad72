"""The models that ship with the package, and the text that everybody's numbers speak of.

target               Llama architecture, about 11 M parameters
intermediate         Llama architecture, about 3.9 M, distilled from the target
target-eagle2        EAGLE-2 head of the target
intermediate-eagle2  EAGLE-2 head of the intermediate model
text                 held-out modules and prompts
"""

import json
from pathlib import Path

NAMES = ("target", "intermediate", "target-eagle2", "intermediate-eagle2")
ROOT = Path(__file__).parent


def folder(name: str) -> Path:
    """The folder of a shipped model.

    Raises:
        ValueError: no such model ships.
    """
    if name not in NAMES:
        raise ValueError(f"the zoo has no {name!r}; it has {', '.join(NAMES)}")
    return ROOT / name


def held_out(part: str) -> list[str]:
    """Texts of held-out modules that no model saw in training.

    Args:
        part: "calibration" (every second module, which algorithms may look at) or "evaluation"
            (the others).
    """
    start = ("evaluation", "calibration").index(part)
    modules = json.loads((ROOT / "text" / "held_out.json").read_text(encoding="utf-8"))
    return list(modules.values())[start::2]


def prompts() -> list[str]:
    """The held-out prompts, in their fixed order."""
    return json.loads((ROOT / "text" / "prompts.json").read_text(encoding="utf-8"))["prompts"]
