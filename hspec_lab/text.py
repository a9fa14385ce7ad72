"""Between text and token ids: loading a folder's tokenizer, and streaming text out again."""

import hashlib
from pathlib import Path

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream


def load_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a model folder.

    Raises:
        ValueError: there is none that can be read.
    """
    path = Path(folder) / "tokenizer.json"
    if path.is_file():
        try:
            return _plain(Tokenizer.from_file(str(path)))
        except Exception as error:  # the library raises bare Exception
            raise ValueError(f"{path}: not a tokenizer ({error})") from None
    if (Path(folder) / "tokenizer.model").is_file():
        # an older layout that transformers knows how to convert
        from transformers import AutoTokenizer

        return _plain(AutoTokenizer.from_pretrained(folder).backend_tokenizer)
    raise ValueError(f"{folder}: no tokenizer.json and no tokenizer.model")


def _plain(tokenizer: Tokenizer) -> Tokenizer:
    """Without the cutting and padding that some training scripts leave in the file."""
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def n_entries(tokenizer: Tokenizer) -> int:
    """One more than the largest id a tokenizer knows."""
    return max(tokenizer.get_vocab().values()) + 1


def tokenizer_id(tokenizer: Tokenizer) -> str:
    """Twelve hex digits that tell tokenizers apart."""
    return hashlib.sha256(tokenizer.to_str().encode()).hexdigest()[:12]


def check_same_vocabulary(first: Path, second: Path) -> None:
    """ValueError when two folders' tokenizers map the same text to different ids."""
    one, other = (load_tokenizer(folder).get_vocab() for folder in (first, second))
    if one == other:
        return
    differing = [token for token in one if one[token] != other.get(token)]
    example = differing[0] if differing else next(token for token in other if token not in one)
    raise ValueError(
        f"the tokenizers of {Path(first).name} and {Path(second).name} differ "
        f"({len(one)} and {len(other)} entries; {example!r} is {one.get(example)} and "
        f"{other.get(example)}); all levels must share one"
    )


class TextStream:
    """Token ids in, text out as soon as it is certain.

    A character may need several tokens, and text that could begin a stop string is held back until
    it is clear that it does not; so the pieces always join to the final text.

    Args:
        stop: texts that end the output; they are not part of it.
    """

    def __init__(self, tokenizer: Tokenizer, stop: tuple[str, ...] = ()):
        self._tokenizer, self._stop = tokenizer, stop
        self._decoder = DecodeStream(skip_special_tokens=True)
        self._held, self._ids, self._n_certain = "", [], 0
        self.stopped = False

    def push(self, token: int) -> str:
        """Text that `token` made certain; sets `stopped` when a stop text is complete."""
        certain = self._decoder.step(self._tokenizer, token) or ""
        self._ids.append(token)
        self._n_certain += len(certain)
        text = self._held + certain
        found = [at for at in (text.find(stop) for stop in self._stop) if at >= 0]
        if found:
            self._held, self.stopped = "", True
            return text[: min(found)]
        keep = max((_overlap(text, stop) for stop in self._stop), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def flush(self) -> str:
        """What was held back, and what half a character stands for, once the output has ended."""
        whole = self._tokenizer.decode(self._ids, skip_special_tokens=True)
        held, self._held = self._held + whole[self._n_certain :], ""
        self._n_certain = len(whole)
        return held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` with which `stop` begins."""
    return next(
        (n for n in range(min(len(text), len(stop) - 1), 0, -1) if stop.startswith(text[-n:])), 0
    )
