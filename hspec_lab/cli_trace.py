"""Commands about traces: `hspec trace` makes one, `hspec analyze` reads anybody's."""

import json
import shlex
import shutil
from pathlib import Path
from textwrap import fill

from hspec_lab.options import add_config, config_of
from hspec_lab.terminal import bar, command, say
from hspec_lab.terms import EXPORTS, PHASES

# what profilers write by the second, and what a look needs
_ROUNDS = {"nsys": 64, "ncu": 4, "kernels": 64}
_SLOWEST = 5
_WIDTH = 100


def add_trace(commands) -> None:
    """Add the commands of this file."""
    _add_trace(commands)
    _add_analyze(commands)


# ---- trace -----------------------------------------------------------------------------------


def _trace(options) -> int:
    config = _config(options)
    if options.nsys or options.ncu:
        return _watched(options, config)
    from hspec_lab import store
    from hspec_lab.capture.record import record

    n_rounds = options.rounds or (_ROUNDS["kernels"] if options.kernels else None)
    with bar("prompt") as progress:
        folder = record(
            config,
            options.store or store.store_root(),
            n_rounds=n_rounds,
            modules=options.modules,
            kernels=options.kernels,
            progress=progress,
        )
    _show_run(folder, options)
    say(f"stored {folder}; to look at it: hspec export {folder} --to perfetto, ui.perfetto.dev")
    if not (options.modules or options.kernels):
        more = (
            "--modules for attention and mlp" if config.device == "cpu" else "--kernels or --nsys"
        )
        say(f"a closer look: the same command with {more}")
    return 0


def _config(options):
    """The configuration asked for, and combinations that make no sense refused."""
    if options.source is not None:
        if options.config is not None:
            raise ValueError("give CONFIG or --config, not both")
        options.config = options.source
    asked = [name for name in ("nsys", "ncu", "kernels") if getattr(options, name)]
    if len(asked) > 1:
        told = " and ".join(f"--{name}" for name in asked)
        raise ValueError(f"one tool at a time: {told} would disturb each other")
    if options.only_write and asked not in (["nsys"], ["ncu"]):
        raise ValueError("--only-write writes the command of --nsys or --ncu: give one of them")
    if options.rounds is not None and options.rounds < 1:
        raise ValueError(f"--rounds must be >= 1, got {options.rounds}")
    # what is looked at is time: the shipped prompts will do
    config, unheard = config_of(options, needs_prompt=False)
    for name in unheard:
        say(f"note: {name} does nothing with the method {config.method}")
    return config


def _watched(options, config) -> int:
    from hspec_lab import store, trace_in
    from hspec_lab.capture.nsight import Plan, watch_kernels, watch_run, write_down
    from hspec_lab.capture.settings import INSTALL
    from hspec_lab.config import config_id

    named = {} if options.timeout is None else {"timeout_s": options.timeout}
    plan = Plan(
        config,
        options.rounds or _ROUNDS["ncu" if options.ncu else "nsys"],
        options.modules,
        options.ncu,
        **named,
    )
    out = options.out or Path(f"hspec_trace-{config_id(config)}")
    missing = shutil.which(plan.tool) is None
    if missing or options.only_write:
        name = write_down(plan, out).name
        if missing:
            say(INSTALL[plan.tool])
        print(f"sh {shlex.quote(str(out / name))}")
        say("run this where the tool, hspec_lab and the models are; " + _then(plan.tool))
        return 0
    if options.ncu:
        print(watch_kernels(plan, out))
        say("open it in ncu-ui, or print it: ncu --import FILE")
        return 0
    folder = watch_run(plan, options.store or store.store_root(), out)
    print((folder / "nsys" / "analysis.txt").read_text(encoding="utf-8").rstrip())
    if options.to:
        _export(trace_in.read_trace(folder / "nsys/trace.sqlite"), folder.name, options)
    say(f"stored {folder}; nsys/trace.nsys-rep in it opens in nsys-ui")
    return 0


def _then(tool: str) -> str:
    if tool == "ncu":
        return "the report opens in ncu-ui"
    return (
        "it analyzes there, too; or bring back trace.sqlite and the folder of runs: "
        "hspec analyze TRACE --into RUN"
    )


def _show_run(folder: Path, options) -> None:
    from hspec_lab.analysis.rounds import slowest
    from hspec_lab.analysis.text import as_text
    from hspec_lab.lab import Run

    run = Run(folder)
    timeline = run.timeline()
    print(as_text(timeline))
    found = slowest(run.rounds, run.spans, _SLOWEST)
    if len(found):
        print("\nSlowest rounds, for the tokens that each emitted")
    for row in found.itertuples():
        told = f"prompt {row.prompt} round {row.round}: {row.duration_us:,.0f} us; {row.why}"
        print(fill(told, _WIDTH, initial_indent="  ", subsequent_indent="    "))
    if options.to:
        _export(timeline, run.name, options)


def _export(timeline, name: str, options) -> None:
    from hspec_lab import trace_out

    path = (options.out or Path()) / trace_out.default_name(name, options.to)
    say(f"wrote {trace_out.write(timeline, options.to, path)}")


# ---- analyze ---------------------------------------------------------------------------------


def _analyze(options) -> int:
    from hspec_lab import store, trace_in
    from hspec_lab.analysis.text import as_text
    from hspec_lab.capture import results

    trace = _found(options)
    if options.again and not options.into:
        raise ValueError("--again replaces what --into left before: give --into RUN")
    if options.into:
        # before a long trace is read
        rounds = store.read_run(options.into)[1]["rounds"]
    timeline = trace_in.read_trace(trace)
    if options.into:
        timeline = results.with_counts(timeline, rounds)
    if options.json:
        print(json.dumps(results.as_json(timeline), allow_nan=False))
    else:
        print(as_text(timeline))
    if (inside := trace / "nsys" / "trace.sqlite").is_file():
        say(f"these are the run's own spans; what nsys saw: hspec analyze {inside}")
    if options.out and not options.to:
        paths = results.write_tables(timeline, options.out)
        say(f"wrote {len(paths)} tables to {options.out}")
    if options.to:
        _export(timeline, results.safe_name(trace), options)
    if options.into:
        say(f"wrote {results.add_trace(trace, timeline, options.into, again=options.again)}")
    return 0


def _found(options) -> Path:
    """The trace that was named: a file, a folder, a run of the store, or its newest."""
    from hspec_lab import store

    root = options.store or store.store_root()
    for path in (Path(options.trace), root / options.trace):
        if path.exists():
            return path
    runs = store.list_runs(root) if options.trace == "latest" else None
    if runs is not None and len(sound := runs.loc[runs["problem"] == "", "run"]):
        return root / sound.iloc[0]
    raise ValueError(f"{options.trace}: no such file or folder, and no such run in the store")


# ---- options ---------------------------------------------------------------------------------


def _add_trace(commands) -> None:
    words = "Record one configuration so that every microsecond can be looked at."
    parser = command(commands, "trace", _trace, words)
    add = parser.add_argument
    add("source", nargs="?", metavar="CONFIG", help="JSON of a configuration, or a run folder")
    add_config(parser)
    add("--rounds", type=int, metavar="N",
        help="of the first prompt only so many rounds; all, with --kernels and --nsys 64, "
        "with --ncu 4")  # fmt: skip
    add("--modules", action="store_true", help="time attention, mlp and lm_head, too (CPU)")
    add("--kernels", action="store_true", help="record what the device runs, too (CUDA)")
    add("--nsys", action="store_true",
        help="in a fresh process under Nsight Systems; without it, write down how")  # fmt: skip
    add("--ncu", metavar="PHASE", choices=PHASES[:-1],
        help="measure one phase's kernels by Nsight Compute; without it, write down how: "
        + ", ".join(PHASES[:-1]))  # fmt: skip
    add("--only-write", action="store_true", help="write down the command of --nsys or --ncu")
    add("--timeout", type=float, metavar="S", help="of nsys or ncu; 1800 seconds")
    add("--to", choices=EXPORTS, help="export at once")
    add("--out", type=Path, metavar="DIR",
        help="of exports, scripts, reports; default: here, ./hspec_trace-<config id>")  # fmt: skip
    add("--store", type=Path, metavar="DIR", help="$HSPEC_STORE or ./hspec_runs")


def _add_analyze(commands) -> None:
    words = "Read a trace: nsys SQLite, torch.profiler JSON, ours, or a run; say where time goes."
    parser = command(commands, "analyze", _analyze, words)
    add = parser.add_argument
    add("trace", metavar="TRACE", help="a file, a folder of tables, a run folder, or latest")
    add("--into", type=Path, metavar="RUN", help="keep tables and analysis in this run folder")
    add("--again", action="store_true", help="replace what an earlier trace of that name left")
    add("--out", type=Path, metavar="DIR", help="of the tables (Parquet, CSV), or of the export")
    add("--to", choices=EXPORTS, help="write the trace for another tool")
    add("--json", action="store_true", help="one JSON object instead of text")
    add("--store", type=Path, metavar="DIR", help="$HSPEC_STORE or ./hspec_runs")
