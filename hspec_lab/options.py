"""What the options of `hspec run` ask for: a config, its prompts given or read from a file."""

import json
import sys
from dataclasses import replace
from pathlib import Path

from hspec_lab import store
from hspec_lab.config import Chain, Config, Drafting, Eagle2, Refine, from_dict
from hspec_lab.formats import Format
from hspec_lab.terms import METHODS

# which options of `hspec run` a method listens to
_DRAFTING = {
    "ar": (),
    "chain": ("intermediate", "draft_len"),
    "eagle2": ("head", "tree_size", "depth", "top_k"),
    "hierspec": ("intermediate", "head", "tree_size", "depth", "top_k", "draft_len", "narrow"),
}
_ASKED = (
    "target",
    "max_new_tokens",
    "temperature",
    "seed",
    "stop",
    "row_invariant",
    "threads",
    "device",
)


def add_config(parser) -> None:
    """Add the options that `config_of` reads."""
    add = parser.add_argument
    add("--prompt", action="append", metavar="TEXT", help="may be given more than once")
    add("--prompts", type=Path, metavar="FILE", help="text (blank lines between), .json, .jsonl")
    add("--config", metavar="FILE", help="JSON as in a run's run.json, or a run folder; - is stdin")
    add("--target", metavar="REF", help="folder@format or zoo:name@format; zoo:target@fp32")
    add("--method", choices=METHODS, help="default: hierspec")
    add("--intermediate", metavar="REF", help="default: zoo:intermediate in the target's format")
    add("--head", metavar="REF", help="default: the folder <model>-eagle2 beside the model")
    add("--tree-size", type=int, metavar="N", help="nodes, the root included; 24")
    add("--depth", type=int, metavar="N", help="levels below the root; 4")
    add("--top-k", type=int, metavar="N", help="children per node; 8")
    add("--draft-len", "--at-least", type=int, metavar="N", dest="draft_len",
        help="tokens of a chain, or hierspec's from the intermediate model; 6")  # fmt: skip
    add("--narrow", type=int, metavar="N",
        help="fill hierspec's sequence up to N rows with second choices; 16 is a tile")  # fmt: skip
    add("--max-new-tokens", type=int, metavar="N", help="128")
    add("--temperature", type=float, metavar="T", help="0 is greedy, the default")
    add("--seed", type=int, metavar="N", help="0")
    add("--stop", action="append", metavar="TEXT", help="ends the output; may be repeated")
    add("--row-invariant", action="store_const", const=True,
        help="the same bits for a row whatever is computed beside it; slower")  # fmt: skip
    add("--threads", type=int, metavar="N", help="2")
    add("--device", metavar="DEVICE", help="cpu; or cuda, with formats such as w4a16-g128")


def config_of(options, needs_prompt: bool = True) -> tuple[Config, list[str]]:
    """Make the config that the options ask for.

    Args:
        options: as parsed; None where an option was not given.
        needs_prompt: False: without one, those that ship with the zoo.

    Returns:
        The config, and the options given that its method does not listen to.

    Raises:
        ValueError: a value, a file, or a combination of options is wrong.
    """
    prompts = _prompts(options)
    named = set(_ASKED) | {"method", *_DRAFTING["hierspec"]}
    given = {name: value for name in named if (value := getattr(options, name)) is not None}
    if options.config is not None:
        if given:
            told = ", ".join(map(_spelled, sorted(given)))
            raise ValueError(f"--config says everything but the prompts: leave out {told}")
        config = _read_config(options.config)
        return replace(config, prompts=prompts) if prompts else config, []
    if not prompts and needs_prompt:
        raise ValueError("no prompt: give --prompt TEXT, --prompts FILE or --config FILE")
    settings = {name: given[name] for name in _ASKED if name in given}
    asked = Config(prompts=prompts, **settings)
    config = replace(asked, draft=_draft(given, asked.format))
    heard = _DRAFTING[config.method]
    unheard = [name for name in _DRAFTING["hierspec"] if name in given and name not in heard]
    return config, list(map(_spelled, unheard))


def _spelled(name: str) -> str:
    return "--" + name.replace("_", "-")


def _draft(given: dict, format: str) -> Drafting | None:
    method = given.get("method", "hierspec")
    tree = {n: given[n] for n in ("tree_size", "depth", "top_k", "head") if n in given}
    n = given.get("draft_len")
    chain, refine = ({}, {}) if n is None else ({"draft_len": n}, {"at_least": n})
    if "narrow" in given:
        refine["tree_size"] = given["narrow"]
    # a stack's size is the target's own
    stored = "fp32" if Format.parse(format).scheme.grid == "bitstack" else format
    intermediate = given.get("intermediate", f"zoo:intermediate@{stored}")
    # all are made, so that a wrong value is told whichever method was asked for
    drafts = {"ar": None, "chain": Chain(intermediate, **chain), "eagle2": Eagle2(**tree)}
    drafts["hierspec"] = Refine(intermediate, drafts["eagle2"], **refine)
    return drafts[method]


def _read_config(where: str) -> Config:
    if Path(where).is_dir():
        return from_dict(store.read_head(where)["config"])
    text = sys.stdin.read() if where == "-" else _read_text(Path(where))
    name = "standard input" if where == "-" else where
    try:
        fields = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{name}: not valid JSON ({error})") from None
    if not isinstance(fields, dict):
        raise ValueError(f"{name}: a config is a JSON object, got {type(fields).__name__}")
    try:
        return from_dict(fields)
    except TypeError as error:
        raise ValueError(f"{name}: {error}") from None


def _prompts(options) -> tuple[str, ...]:
    if options.prompt and options.prompts is not None:
        raise ValueError("give --prompt TEXT or --prompts FILE, not both")
    if options.prompts is not None:
        return tuple(read_prompts(options.prompts))
    if not all(options.prompt or ()):
        raise ValueError("the prompt is empty; decoding needs at least one token")
    return tuple(options.prompt or ())


def read_prompts(path: Path) -> list[str]:
    """Read prompts from a file.

    Args:
        path: `.json`, a list of texts or {"prompts": [...]}; `.jsonl`, one object with "prompt"
            a line; anything else is text, with blank lines between prompts.

    Raises:
        ValueError: no such file, not in this form, or no prompt in it.
    """
    text, kind = _read_text(path), path.suffix.lower()
    try:
        if kind == ".json":
            found = json.loads(text)
            found = found["prompts"] if isinstance(found, dict) else found
        elif kind == ".jsonl":
            found = [json.loads(line)["prompt"] for line in text.splitlines() if line.strip()]
        else:
            found = _blocks(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: not valid JSON ({error})") from None
    except (KeyError, TypeError):
        wanted = '"prompts"' if kind == ".json" else '"prompt" on every line'
        raise ValueError(f"{path}: no {wanted}") from None
    if not isinstance(found, list) or not all(isinstance(prompt, str) for prompt in found):
        raise ValueError(f"{path}: prompts must be a list of texts")
    if not found or not all(found):
        raise ValueError(f"{path}: {'an empty prompt' if found else 'no prompt'} in it")
    return found


def _blocks(text: str) -> list[str]:
    blocks = [[]]
    for line in text.splitlines():
        if line.strip():
            blocks[-1].append(line)
        elif blocks[-1]:
            blocks.append([])
    return ["\n".join(block) for block in blocks if block]


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ValueError(f"{path}: not UTF-8 text") from None
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror or error}") from None
