"""Train the zoo's tokenizer: byte-level BPE over Python source.

The pre-tokenizer decides what may become one token.  Three choices matter for code: a line break
swallows the indentation that follows it, punctuation may swallow the line break behind it
(`):\\n        ` is one token), and a word may carry one leading space or symbol (`.name`, `(self`).
"""

from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

VOCAB_SIZE = 4096
BOS, EOS = "<|begin|>", "<|end|>"
PATTERN = (
    r"'(?:[sdmt]|ll|ve|re)(?!\w)"
    r"|[^\r\n\p{L}\p{N}]?\p{L}+"
    r"|\p{N}{1,3}"
    r"|\s*\n[ \t]*(?:\n[ \t]*)*"
    r"| ?[^\s\p{L}\p{N}]+(?:\n[ \t]*)*"
    r"|\s+(?!\S)"
    r"|\s+"
)


def train_tokenizer(texts: list[str]) -> Tokenizer:
    """Train a byte-level BPE of `VOCAB_SIZE` entries; ids 0 and 1 are begin and end of text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[BOS, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Write `tokenizer.json` so that `AutoTokenizer` loads it unchanged."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
