"""The `hspec` command.

    hspec demo      every format with every method on the shipped models: a table and a page
    hspec run       decode your own prompts, streaming, and store the run
    hspec runs      what has been stored
    hspec report    one stored run as a page
    hspec export    one stored run for Perfetto, Nsight Systems, speedscope or data frames
    hspec trace     one configuration, recorded as closely as the device allows; nsys and ncu
    hspec analyze   where the time goes in a trace: nsys, torch.profiler, ours
    hspec measure   cost curves: the time of a pass over n tokens, for every n
    hspec record    what a drafter proposes at every position of a text, for replay
    hspec predict   one setting: replayed acceptance times cost, here or on another device
    hspec best      the fastest setting of all that were recorded, confirmed by real runs
    hspec devices   whose roofline is known
    hspec quantize  choose a model's weights by an algorithm: gptq, awq, quarot, evopress, ...
    hspec quality   perplexity, divergence and tokens a round of quantized models
    hspec study     quantization and speculation together: a grid, measured
    hspec zoo       train and export the shipped models

Text goes to stdout; progress, notes and summaries to stderr.  Exit codes: 0; 1 when a demo found a
bug; 2, after one line, when something that was asked for is wrong; 130 when interrupted.  What
needs torch is imported by the commands that need it.
"""

import argparse
import json
import os
import sys
from dataclasses import replace
from pathlib import Path

from hspec_lab.cli_bits import add_bits
from hspec_lab.cli_predict import add_predict
from hspec_lab.cli_trace import add_trace
from hspec_lab.config import CPU_FORMATS
from hspec_lab.options import add_config, config_of
from hspec_lab.terminal import bar, command, say
from hspec_lab.terms import EXPORTS


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
        say(" ".join(str(error).split()))
        return 2
    except KeyboardInterrupt:
        say("interrupted; what was not finished is not stored")
        return 130


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
    with bar() as progress:
        found = demo.run_demo(plan, root, options.report, progress)
    shown = sys.stderr if options.json else sys.stdout
    print(table.table_text(found.rows), demo.conditions_text(found), sep="\n\n", file=shown)
    print(f"\nreport {found.report}, runs in {root}", file=shown)
    if options.json:
        print(found.json())
    if found.bugs:
        say(f"{len(found.bugs)} of the greedy outputs differ by more than rounding: a bug")
    return 1 if found.bugs else 0


# ---- run -------------------------------------------------------------------------------------


def _run(options) -> int:
    config, unheard = config_of(options)
    for name in unheard:
        say(f"note: {name} does nothing with the method {config.method}")
    from hspec_lab import store
    from hspec_lab.experiment import Session
    from hspec_lab.lab import Run

    with bar("layer") as progress:
        session = Session(config, progress=progress)
    session.warm_up()
    n_prompts = len(session.prompts)
    for index in range(n_prompts):
        if n_prompts > 1:
            say(f"prompt {index + 1} of {n_prompts}")
        for item in session.rounds_of(index):
            sys.stdout.write(item.text)
            sys.stdout.flush()
        sys.stdout.write("\n")
        sys.stdout.flush()
    run = Run(session.write(options.store or store.store_root()))
    found = run.summary()
    say(
        f"{run.label}: {len(run.tokens)} tokens, {found['mean_emitted']:.2f} a round, "
        f"{found['tokens_per_s']:.1f} tokens/s (measured, {run.environment['threads']} threads, "
        f"prefill apart), stored {run.folder}"
    )
    return 0


# ---- what is stored --------------------------------------------------------------------------


def _runs(options) -> int:
    from hspec_lab import store

    root = options.store or store.store_root()
    found = store.list_runs(root)
    if not len(found):
        say(f"no runs in {root}")
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


# ---- measure ---------------------------------------------------------------------------------


def _measure(options) -> int:
    if options.suite:
        return _measure_suite(options)
    if options.in_rounds:
        return _measure_rounds(options)
    from hspec_lab.cost import as_text
    from hspec_lab.measure import Plan, measure_costs
    from hspec_lab.store import read_cost

    shapes = [f"shape:{shape}@{s}" for shape in options.shape for s in options.schemes]
    named = {"repeats": options.repeats, "threads": options.threads, "device": options.device}
    plan = Plan(
        models=(*options.model, *shapes),
        contexts=tuple(options.contexts),
        rows=_whole_numbers(options.rows),
        cold=options.cold,
        **{name: value for name, value in named.items() if value is not None},
    )
    with bar("turn") as progress:
        measure_costs(plan, options.out, progress)
    print(as_text(*read_cost(options.out)))
    print(f"\n{options.out / 'cost.parquet'}")
    return 0


def _measure_rounds(options) -> int:
    if options.shape:
        raise ValueError("--in-rounds decodes: made-up weights have no text, leave out --shape")
    from hspec_lab.config import Chain, Eagle2, Refine
    from hspec_lab.measure_rounds import RoundsPlan, measure_rounds

    head = Eagle2(64, 8, options.top_k)
    below = options.intermediate
    drafts = (head, *((Chain(below, 12), Refine(below, head, 12)) if below else ()))
    named = {"threads": options.threads, "device": options.device}
    plan = RoundsPlan(
        targets=tuple(options.model),
        drafts=drafts,
        seconds=options.seconds,
        **{name: value for name, value in named.items() if value is not None},
    )
    with bar("s") as progress:
        table = measure_rounds(plan, options.out, progress)
    n_rounds = int((table["phase"] == "round").sum())
    print(f"{options.out / 'stages.parquet'}: {n_rounds} rounds")
    return 0


def _measure_suite(options) -> int:
    if options.model or options.shape:
        raise ValueError("--suite measures shapes of its own: leave out --model and --shape")
    from hspec_lab.suite import as_text, run_suite

    with bar("item") as progress:
        left = run_suite(
            options.out,
            device=options.device or "cuda",
            minutes=options.minutes,
            progress=progress,
        )
    print(as_text(options.out))
    if n := sum(left.values()):
        say(f"{n} items are left; the same command goes on with them")
    return 0


def _whole_numbers(text: str) -> tuple[int, ...]:
    """ "1,2,4" or "1-64" or both."""
    found = []
    for part in text.split(","):
        low, dash, high = part.partition("-")
        if not low.isdecimal() or (dash and not high.isdecimal()):
            raise ValueError(f"--rows takes numbers and ranges such as 1-16,32; got {text!r}")
        found += range(int(low), int(high or low) + 1)
    return tuple(found)


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
    from hspec_lab.card import evaluate_zoo, write_card
    from hspec_lab.train.zoo import export_zoo

    if not options.work.is_dir():
        raise ValueError(f"{options.work}: no such folder; run `hspec zoo train` first")
    facts = export_zoo(options.work, zoo.ROOT, options.device)
    measured = evaluate_zoo(len(zoo.prompts()))
    write_card(facts, measured, zoo.ROOT / "MODEL_CARD.md")
    (zoo.ROOT / "measured.json").write_text(json.dumps(measured, indent=1) + "\n")
    print(json.dumps({"facts": facts, "measured": measured}, indent=2))
    return 0


# ---- options ---------------------------------------------------------------------------------


class _Parser(argparse.ArgumentParser):
    """Tells an error in one line, as everything else here does."""

    def error(self, message: str):
        raise ValueError(f"{message} (see {self.prog} --help)")


def _parser() -> _Parser:
    from hspec_lab import __version__

    parser = _Parser(
        prog="hspec",
        description="Speculative decoding of quantized language models, measured.",
        epilog=__doc__.split("\n\n")[2],
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"hspec_lab {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_demo(commands)
    _add_run(commands)
    _add_stored(commands)
    _add_measure(commands)
    add_predict(commands)
    add_trace(commands)
    add_bits(commands)
    _add_zoo(commands)
    return parser


def _add_store(parser) -> None:
    parser.add_argument("--store", type=Path, metavar="DIR", help="$HSPEC_STORE or ./hspec_runs")


def _add_demo(commands) -> None:
    words = "Decode held-out prompts with every format and method: a table and a page."
    parser = command(commands, "demo", _demo, words)
    parser.add_argument("--quick", action="store_true", help="finish within a minute")
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    parser.add_argument("--peer", action="store_true", help="add transformers' own decoding")
    parser.add_argument("--report", type=Path, default=Path("report.html"), metavar="FILE")
    parser.add_argument("--formats", nargs="+", metavar="FORMAT", help=", ".join(CPU_FORMATS))
    parser.add_argument("--intermediate-format", metavar="FORMAT", help="default: the target's")
    for name in ("--n-prompts", "--max-new-tokens", "--threads"):
        parser.add_argument(name, type=int, metavar="N")
    _add_store(parser)


def _add_run(commands) -> None:
    words = "Decode prompts, streaming the text to stdout, and store the run."
    parser = command(commands, "run", _run, words)
    add_config(parser)
    _add_store(parser)


def _add_stored(commands) -> None:
    _add_store(command(commands, "runs", _runs, "List the stored runs, newest first."))
    export = command(commands, "export", _export, "Write a stored run for another tool.")
    page = command(commands, "report", _report, "Write a stored run as a page.")
    for parser in (export, page):
        parser.add_argument("run", metavar="RUN", help="a folder, a run of the store, or latest")
        parser.add_argument("--out", type=Path, metavar="PATH", help="default: beside you")
        _add_store(parser)
    export.add_argument("--to", choices=EXPORTS, default=EXPORTS[0])


def _add_measure(commands) -> None:
    words = "Measure the time of one forward pass over n tokens, for every n; resumable."
    parser = command(commands, "measure", _measure, words)
    add = parser.add_argument
    add("--model", nargs="+", default=[], metavar="REF", help="folder@format or zoo:name@format")
    add("--shape", nargs="+", default=[], metavar="NAME",
        help="a real model's sizes, made-up weights: llama-3-8b, ..., or a folder")  # fmt: skip
    add("--schemes", nargs="+", default=["w4a16-g128"], metavar="FORMAT", help="of the shapes")
    add("--contexts", nargs="+", type=int, default=[512], metavar="N", help="tokens stored; 512")
    add("--rows", default="1-128", metavar="N,N-N", help="tokens of a pass; 1-128")
    add("--cold", action="store_true", help="weights and cache out of the processor's caches")
    add("--in-rounds", action="store_true",
        help="instead: every stage of real rounds, sizes drawn anew before each")  # fmt: skip
    add("--intermediate", metavar="REF", help="in rounds: of chains and hierarchies, too")
    add("--top-k", type=int, default=8, metavar="N", help="in rounds: of the draft head; 8")
    add("--seconds", type=float, default=60.0, metavar="N",
        help="in rounds: per target and drafter; 60")  # fmt: skip
    add("--repeats", type=int, metavar="N", help="15")
    add("--threads", type=int, metavar="N", help="2")
    add("--device", metavar="DEVICE", help="cpu; of the suite cuda")
    add("--suite", choices=("gpu",), help="instead: everything worth knowing of a CUDA device")
    add("--minutes", type=float, default=8.0, metavar="N", help="of the suite, per call; 8")
    add("--out", type=Path, required=True, metavar="DIR", help="goes on where it was")


def _add_zoo(commands) -> None:
    words = "Train the shipped models, or export what was trained."
    parser = commands.add_parser("zoo", help=words, description=words)
    stages = parser.add_subparsers(required=True, metavar="train|export")
    train = command(stages, "train", _zoo_train, "Train what is not trained yet; resumable.")
    export = command(stages, "export", _zoo_export, "Write the shipped folders.")
    for stage in (train, export):
        stage.add_argument("--work", type=Path, metavar="DIR", required=True, help="its state")
        stage.add_argument("--device", default="cpu")
    train.add_argument("--steps", nargs="+", default=[], metavar="STAGE=N")


if __name__ == "__main__":
    sys.exit(main())
