"""Calibration text: token windows, and a name by which results are remembered."""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

from tokenizers import Tokenizer

from hspec_lab import zoo
from hspec_lab.model.shelf import OWN_TEXT


@dataclass(frozen=True, slots=True)
class Calibration:
    """What algorithms may read of a model's inputs.

    Attributes:
        texts: empty: held-out text of the zoo that no evaluation here reads.
        sequences: windows at most.
        length: tokens of a window; shorter where the model's context is.
    """

    texts: tuple[str, ...] = field(default=(), repr=False)
    sequences: int = 48
    length: int = 512

    def __post_init__(self):
        for name in ("sequences", "length"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise ValueError(f"calibration: {name} must be a whole number >= 1, got {value!r}")

    @classmethod
    def of_files(cls, paths: list[Path], **options) -> "Calibration":
        """Texts from files; ValueError names one that cannot be read."""
        texts = []
        for path in paths:
            try:
                texts.append(Path(path).read_text(encoding="utf-8"))
            except (OSError, UnicodeDecodeError) as error:
                raise ValueError(f"{path}: cannot be read as text ({error})") from None
        return cls(tuple(texts), **options)

    @property
    def name(self) -> str:
        """Changes when the text or its windows do."""
        if self == Calibration():
            return OWN_TEXT
        content = hashlib.sha256("\0".join(self.texts).encode()).hexdigest()[:16]
        return f"{content} {self.sequences} x {self.length}"

    def windows(self, tokenizer: Tokenizer, context: int) -> list[list[int]]:
        """Token windows, all of one length, the texts one behind another.

        Raises:
            ValueError: the text is shorter than one window.
        """
        length = min(self.length, context)
        ids = [
            token
            for text in self.texts or zoo.held_out("calibration")
            for token in tokenizer.encode(text, add_special_tokens=False).ids
        ]
        if len(ids) < length:
            raise ValueError(
                f"the calibration text has {len(ids)} tokens, one sequence needs {length}: "
                "give more text or a smaller length"
            )
        n_windows = len(ids) // length
        n = min(n_windows, self.sequences)
        # spread over all the text when there is more than is asked for
        starts = [i * n_windows // n * length for i in range(n)]
        return [ids[start : start + length] for start in starts]
