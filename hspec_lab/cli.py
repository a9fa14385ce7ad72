"""The `hspec` command.

    hspec demo      every format with every method on the shipped models: a table and a page
    hspec run       decode your own prompts, streaming, and store the run
    hspec runs      what has been stored
    hspec report    one stored run as a page
    hspec export    one stored run for another tool
    hspec zoo       train and export the shipped models

Text goes to stdout; progress, notes and summaries to stderr.  Exit codes: 0; 1 when a demo found a
bug; 2, after one line, when something that was asked for is wrong; 130 when interrupted.  What
needs torch is imported by the commands that need it.
"""

import argparse
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from hspec_lab.config import FORMATS, Chain, Config, Drafting, Eagle2, Refine, from_dict
from hspec_lab.terms import METHODS

# which options of `hspec run` a method listens to
_DRAFTING = {
    "ar": (),
    "chain": ("intermediate", "draft_len"),
    "eagle2": ("head", "tree_size", "depth", "top_k"),
    "hierspec": ("intermediate", "head", "tree_size", "depth", "top_k", "draft_len"),
}
_ASKED = ("target", "max_new_tokens", "temperature", "seed", "stop", "row_invariant", "threads")


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit code.

    Args:
        arguments: the words behind `hspec`; None: the process's own.
    """
    try:
        options = _parser().parse_args(arguments)
        code = options.command(options)
        sys.stdout.flush()
        return code
    except SystemExit as done:  # --help and --version
        return done.code or 0
    except BrokenPipeError:
        _silence(sys.stdout)
        return 141  # what a shell says of a command whose reader went away
    except (ValueError, OSError) as error:
        _say(" ".join(str(error).split()))
        return 2
    except KeyboardInterrupt:
        _say("interrupted; what was not finished is not stored")
        return 130


def _say(line: str) -> None:
    print(f"hspec: {line}", file=sys.stderr)


def _silence(stream) -> None:
    """Send what is still buffered nowhere, or the interpreter would complain at exit."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    except (OSError, ValueError):
        pass  # not a real file


# ---- demo ------------------------------------------------------------------------------------


def _demo(options) -> int:
    from hspec_lab import demo, store, table

    plan = demo.QUICK if options.quick else demo.Plan()
    named = ("formats", "n_prompts", "max_new_tokens", "threads", "intermediate_format")
    given = {name: getattr(options, name) for name in named}
    given = {name: value for name, value in given.items() if value is not None}
    plan = replace(plan, peer=options.peer, **given)
    root = options.store or store.store_root()
    with _bar() as progress:
        found = demo.run_demo(plan, root, options.report, progress)
    shown = sys.stderr if options.json else sys.stdout
    print(table.table_text(found.rows), demo.conditions_text(found), sep="\n\n", file=shown)
    print(f"\nreport {found.report}, runs in {root}", file=shown)
    if options.json:
        print(found.json())
    if found.bugs:
        _say(f"{len(found.bugs)} of the greedy outputs differ by more than rounding: a bug")
    return 1 if found.bugs else 0


@contextmanager
def _bar() -> Iterator:
    """A progress bar on stderr, told as `experiment.Progress` says."""
    from tqdm import tqdm

    # a log file needs no ten lines a second
    pace = 0.1 if sys.stderr.isatty() else 10
    with tqdm(file=sys.stderr, leave=False, mininterval=pace, dynamic_ncols=True) as bar:

        def progress(done: int, total: int, text: str) -> None:
            bar.total = total
            if done < bar.n:
                bar.reset(total)
            bar.set_description_str(text, refresh=False)
            bar.update(done - bar.n)

        yield progress


# ---- run -------------------------------------------------------------------------------------


def _run(options) -> int:
    config = _config(options)
    from hspec_lab import store
    from hspec_lab.experiment import Session
    from hspec_lab.lab import Run

    session = Session(config)
    session.warm_up()
    n_prompts = len(session.prompts)
    for index in range(n_prompts):
        if n_prompts > 1:
            _say(f"prompt {index + 1} of {n_prompts}")
        for item in session.rounds_of(index):
            sys.stdout.write(item.text)
            sys.stdout.flush()
        sys.stdout.write("\n")
        sys.stdout.flush()
    run = Run(session.write(options.store or store.store_root()))
    found = run.summary()
    _say(
        f"{run.label}: {len(run.tokens)} tokens, {found['mean_emitted']:.2f} a round, "
        f"{found['tokens_per_s']:.1f} tokens/s (measured, {run.environment['threads']} threads, "
        f"prefill apart), stored {run.folder}"
    )
    return 0


def _config(options) -> Config:
    """The config that the options ask for."""
    prompts = _prompts(options)
    named = set(_ASKED) | {"method", *_DRAFTING["hierspec"]}
    given = {name: value for name in named if (value := getattr(options, name)) is not None}
    if options.config is not None:
        if given:
            told = ", ".join(f"--{name.replace('_', '-')}" for name in sorted(given))
            raise ValueError(f"--config says everything but the prompts: leave out {told}")
        config = _read_config(options.config)
        return replace(config, prompts=prompts) if prompts else config
    if not prompts:
        raise ValueError("no prompt: give --prompt TEXT, --prompts FILE or --config FILE")
    settings = {name: given[name] for name in _ASKED if name in given}
    asked = Config(prompts=prompts, **settings)
    return replace(asked, draft=_draft(given, asked.format))


def _draft(given: dict, format: str) -> Drafting | None:
    method = given.get("method", "hierspec")
    tree = {n: given[n] for n in ("tree_size", "depth", "top_k", "head") if n in given}
    n_tokens = {"draft_len": given["draft_len"]} if "draft_len" in given else {}
    at_least = {"at_least": n for n in n_tokens.values()}
    intermediate = given.get("intermediate", f"zoo:intermediate@{format}")
    # all are made, so that a wrong value is told whichever method was asked for
    drafts = {"ar": None, "chain": Chain(intermediate, **n_tokens), "eagle2": Eagle2(**tree)}
    drafts["hierspec"] = Refine(intermediate, drafts["eagle2"], **at_least)
    for name in _DRAFTING["hierspec"]:
        if name in given and name not in _DRAFTING[method]:
            _say(f"note: --{name.replace('_', '-')} does nothing with the method {method}")
    return drafts[method]


def _read_config(where: str) -> Config:
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


# ---- what is stored --------------------------------------------------------------------------


def _runs(options) -> int:
    from hspec_lab import store

    root = options.store or store.store_root()
    found = store.list_runs(root)
    if not len(found):
        _say(f"no runs in {root}")
    elif (found["problem"] == "").all():
        print(found.drop(columns="problem").to_string(index=False))
    else:
        print(found.fillna("").to_string(index=False))
    return 0


def _stored(options):
    """The run that was named: a folder, a run of the store, or its newest."""
    from hspec_lab.lab import Run, open_store

    shelf = open_store(options.store)
    if options.run == "latest":
        run = next(iter(shelf), None)
        if run is None:
            raise ValueError(f"no runs in {shelf.root}")
        return run
    for folder in (Path(options.run), shelf.root / options.run):
        if folder.is_dir():
            return Run(folder)
    raise ValueError(f"no run {options.run!r}: no such folder, and none in {shelf.root}")


def _export(options) -> int:
    print(_stored(options).export(options.to, options.out))
    return 0


def _report(options) -> int:
    from hspec_lab import table

    run = _stored(options)
    # the yardstick of the speed-up may lie beside it
    others = [other for other in run.store if other.name != run.name]
    row = table.rows_of([*others, run])[-1]
    path = options.out or Path(f"{run.name}.html")
    print(table.write_page(path, [row], [run], run.environment, title=f"The run {run.name}"))
    return 0


# ---- zoo -------------------------------------------------------------------------------------


def _zoo_train(options) -> int:
    from dataclasses import fields

    from hspec_lab.train.zoo import Budget, train_zoo

    known, steps = [field.name for field in fields(Budget)], {}
    for entry in options.steps:
        name, _, n = entry.partition("=")
        if name not in known or not n.isdecimal() or int(n) < 1:
            raise ValueError(f"--steps takes STAGE=N, stages {', '.join(known)}; got {entry!r}")
        steps[name] = int(n)
    train_zoo(options.work, Budget(**steps), device=options.device)
    return 0


def _zoo_export(options) -> int:
    from hspec_lab import zoo
    from hspec_lab.train.zoo import export_zoo

    if not options.work.is_dir():
        raise ValueError(f"{options.work}: no such folder; run `hspec zoo train` first")
    print(json.dumps(export_zoo(options.work, options.out or zoo.ROOT, options.device), indent=2))
    return 0


# ---- options ---------------------------------------------------------------------------------


class _Parser(argparse.ArgumentParser):
    """Tells an error in one line, as everything else here does."""

    def error(self, message: str):
        raise ValueError(f"{message} (see {self.prog} --help)")


def _parser() -> _Parser:
    from hspec_lab import __version__

    about = __doc__.split("\n\n")
    parser = _Parser(
        prog="hspec",
        description="Speculative decoding of quantized language models, measured.",
        epilog=f"{about[1]}\n\n{about[2]}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"hspec_lab {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_demo(commands)
    _add_run(commands)
    _add_stored(commands)
    _add_zoo(commands)
    return parser


def _command(commands, name: str, run, words: str) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=words, description=words, allow_abbrev=False)
    parser.set_defaults(command=run)
    return parser


def _add_store(parser) -> None:
    parser.add_argument("--store", type=Path, metavar="DIR", help="$HSPEC_STORE or ./hspec_runs")


def _add_demo(commands) -> None:
    words = "Decode held-out prompts with every format and method: a table and a page."
    parser = _command(commands, "demo", _demo, words)
    parser.add_argument("--quick", action="store_true", help="finish within a minute")
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    parser.add_argument("--peer", action="store_true", help="add transformers' own decoding")
    parser.add_argument("--report", type=Path, default=Path("report.html"), metavar="FILE")
    parser.add_argument("--formats", nargs="+", metavar="FORMAT", help=", ".join(FORMATS))
    parser.add_argument("--intermediate-format", metavar="FORMAT", help="default: the target's")
    for name in ("--n-prompts", "--max-new-tokens", "--threads"):
        parser.add_argument(name, type=int, metavar="N")
    _add_store(parser)


def _add_run(commands) -> None:
    words = "Decode prompts, streaming the text to stdout, and store the run."
    parser = _command(commands, "run", _run, words)
    add = parser.add_argument
    add("--prompt", action="append", metavar="TEXT", help="may be given more than once")
    add("--prompts", type=Path, metavar="FILE", help="text (blank lines between), .json, .jsonl")
    add("--config", metavar="FILE", help="JSON as in a run's run.json; - is standard input")
    add("--target", metavar="REF", help="folder@format or zoo:name@format; zoo:target@fp32")
    add("--method", choices=METHODS, help="default: hierspec")
    add("--intermediate", metavar="REF", help="default: zoo:intermediate in the target's format")
    add("--head", metavar="REF", help="default: the folder <model>-eagle2 beside the model")
    add("--tree-size", type=int, metavar="N", help="nodes, the root included; 24")
    add("--depth", type=int, metavar="N", help="levels below the root; 4")
    add("--top-k", type=int, metavar="N", help="children per node; 8")
    add("--draft-len", "--at-least", type=int, metavar="N", dest="draft_len",
        help="tokens of a chain, or that hierspec's intermediate model has at least; 6")  # fmt: skip
    add("--max-new-tokens", type=int, metavar="N", help="128")
    add("--temperature", type=float, metavar="T", help="0 is greedy, the default")
    add("--seed", type=int, metavar="N", help="0")
    add("--stop", action="append", metavar="TEXT", help="ends the output; may be repeated")
    add("--row-invariant", action="store_const", const=True,
        help="the same bits for a row whatever is computed beside it; slower")  # fmt: skip
    add("--threads", type=int, metavar="N", help="2")
    _add_store(parser)


def _add_stored(commands) -> None:
    _add_store(_command(commands, "runs", _runs, "List the stored runs, newest first."))
    export = _command(commands, "export", _export, "Write a stored run for another tool.")
    page = _command(commands, "report", _report, "Write a stored run as a page.")
    for parser in (export, page):
        parser.add_argument("run", metavar="RUN", help="a folder, a run of the store, or latest")
        parser.add_argument("--out", type=Path, metavar="PATH", help="default: beside you")
        _add_store(parser)
    export.add_argument("--to", choices=("perfetto", "parquet"), default="perfetto")


def _add_zoo(commands) -> None:
    words = "Train the shipped models, or export what was trained."
    parser = commands.add_parser("zoo", help=words, description=words)
    stages = parser.add_subparsers(required=True, metavar="train|export")
    train = _command(stages, "train", _zoo_train, "Train what is not trained yet; resumable.")
    export = _command(stages, "export", _zoo_export, "Write the shipped folders.")
    for stage in (train, export):
        stage.add_argument("--work", type=Path, metavar="DIR", required=True, help="its state")
        stage.add_argument("--device", default="cpu")
    train.add_argument("--steps", nargs="+", default=[], metavar="STAGE=N")
    export.add_argument("--out", type=Path, metavar="DIR", help="default: the package's own zoo")


if __name__ == "__main__":
    sys.exit(main())
