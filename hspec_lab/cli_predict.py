"""Commands about prediction: `hspec record`, `hspec predict`, `hspec best` and `hspec devices`."""

from dataclasses import replace
from pathlib import Path

from hspec_lab.cli_sources import add_sources, priced
from hspec_lab.config import Chain, Config, Eagle2, Refine
from hspec_lab.options import read_prompts
from hspec_lab.terminal import bar, command, say
from hspec_lab.terms import METHODS


def add_predict(commands) -> None:
    """Add the commands of this file."""
    _add_record(commands)
    _add_predict(commands)
    _add_best(commands)
    _add_devices(commands)


# ---- record ----------------------------------------------------------------------------------


def _record(options) -> int:
    from hspec_lab.acceptance import interval, replay
    from hspec_lab.record import record

    if options.max_new_tokens < 2:
        raise ValueError(f"--max-new-tokens must be >= 2, got {options.max_new_tokens}")
    head = Eagle2(64, options.depth, options.top_k, options.head)
    drafts = {
        "eagle2": head,
        "chain": Chain(options.intermediate, options.at_least),
        "hierspec": Refine(options.intermediate, head, options.at_least, options.sampling),
    }
    asked = ("temperature", "seed", "threads", "device", "max_new_tokens", "n_prompts")
    config = Config(
        target=options.target,
        draft=drafts[options.method],
        prompts=tuple(read_prompts(options.prompts)) if options.prompts else (),
        row_invariant=not options.as_decoded,
        **{name: getattr(options, name) for name in asked},
    )
    try:
        with bar("position") as progress:
            trace = record(config, options.out, progress)
    except KeyboardInterrupt:
        say("interrupted; the same command goes on where it was")
        return 130
    rounds = replay(trace, trace.draft)
    low, high = interval(rounds)
    between = f", {low:.2f} to {high:.2f}" if low == low else ""
    told = f"{rounds['n_emitted'].mean():.2f} tokens a round" if len(rounds) else "no round"
    print(
        f"{options.out}: {trace.n_counted} positions, {len(trace.states)} states; with trees of 64 "
        f"and the largest other sizes {told} (replayed{between})"
    )
    return 0


def _add_record(commands) -> None:
    words = "Record what a drafter proposes at every position of the target's text; resumable."
    parser = command(commands, "record", _record, words)
    add = parser.add_argument
    add("--target", default="zoo:target@fp32", metavar="REF", help="zoo:target@fp32")
    add("--method", choices=("eagle2", "chain", "hierspec"), default="eagle2",
        help="eagle2; hierspec answers for chains and narrow trees too")  # fmt: skip
    add("--intermediate", default="zoo:intermediate@w4a16-g128", metavar="REF",
        help="zoo:intermediate@w4a16-g128")  # fmt: skip
    add("--head", metavar="REF", help="default: the folder <model>-eagle2 beside the model")
    add("--top-k", type=int, default=8, metavar="N", help="children per node; 8")
    add("--depth", type=int, default=8, metavar="N", help="the largest to be asked for; 8")
    add("--at-least", type=int, default=12, metavar="N",
        help="the largest minimum draft length, or chain; 12")  # fmt: skip
    add("--max-new-tokens", type=int, default=352, metavar="N", help="positions a prompt; 352")
    add("--n-prompts", type=int, default=29, metavar="N", help="of the shipped ones; 29")
    add("--prompts", type=Path, metavar="FILE", help="text (blank lines between), .json, .jsonl")
    add("--temperature", type=float, default=0.0, metavar="T", help="0 is greedy, the default")
    add("--sampling", choices=("sample", "greedy"), default="sample",
        help="what hierspec's intermediate model does above temperature 0")  # fmt: skip
    add("--seed", type=int, default=0, metavar="N", help="0")
    add("--as-decoded", action="store_true",
        help="not row-invariant: rounding then depends on what runs beside a row")  # fmt: skip
    add("--threads", type=int, default=2, metavar="N", help="2")
    add("--device", default="cpu", metavar="DEVICE", help="cpu, or cuda")
    add("--out", type=Path, required=True, metavar="DIR", help="holds the trace; resumed")


# ---- predict ---------------------------------------------------------------------------------


def _predict(options) -> int:
    if options.against is not None:
        return _against(options)
    if options.prompt_tokens < 1:
        raise ValueError(f"--prompt-tokens must be >= 1, got {options.prompt_tokens}")
    from hspec_lab.predict import predict

    seen = set()
    for source in priced(options):
        draft = _asked(options, source.trace)
        again = (source.costs.device, source.costs.target, draft)
        if draft is _NOT_THERE or not source.is_for(draft) or again in seen:
            continue
        seen.add(again)
        costs = source.costs
        found = predict(source.trace, draft, costs, allow=options.allow)
        low, high = found.speedup_low, found.speedup_high
        print(
            f"{costs.device}: {costs.target}, {draft or 'ar'!r}\n"
            f"  {found.us_per_token:.0f} us a token ({found.us_per_token_low:.0f} to "
            f"{found.us_per_token_high:.0f}), {found.speedup:.2f}x ar ({low:.2f} to {high:.2f}), "
            f"{found.mean_emitted:.2f} tokens a round"
        )
        table = found.phases[["phase", "us_per_emitted", "us_per_round", "share"]].round(3)
        print("  " + table.to_string(index=False).replace("\n", "\n  "))
        _tell_request(options.prompt_tokens, source, draft, found)
        print(f"  {found.caption()['origin']}: {found.caption()['note']}\n")
    if not seen:
        raise ValueError(f"no trace answers for {options.method}; record one with `hspec record`")
    return 0


def _against(options) -> int:
    """Predicted beside measured, for every stored run."""
    from hspec_lab.against import accuracy, against_runs
    from hspec_lab.lab import open_store

    if options.device:
        raise ValueError("--against compares with runs of this device: leave out --device")
    sources = priced(options)
    traces = list(dict.fromkeys(source.trace for source in sources))
    costs = [source.costs for source in sources]
    store = open_store(options.against or None)
    runs = list(store)
    if not runs:
        raise ValueError(f"no runs in {store.root}")
    table = against_runs([(run.head, run.rounds, run.spans) for run in runs], traces, costs)
    shown = ["method", "format", "mean_emitted", "mean_emitted_measured", "ar_steps",
             "ar_steps_measured", "error", "trace", "problem"]  # fmt: skip
    print(table[shown].round(3).to_string(index=False, na_rep=""))
    found = accuracy(table)
    print(
        f"\n{found['n']} of {len(table)} runs compared in ar steps: median error "
        f"{found['median']:.1%}, 95th percentile {found['p95']:.1%} ({table.attrs['origin']})"
    )
    return 0


def _tell_request(n: int, source, draft, found) -> None:
    """What a whole request takes: the first token, when speculation pays, and memory."""
    from hspec_lab.request import break_even, memory, time_to_first_token

    costs, device = source.costs, source.device
    first, plain = (
        time_to_first_token(some, n)["us"].sum() / 1e3 for some in source.prefills(draft)
    )
    pays = break_even(1e3 * first, 1e3 * plain, found.us_per_token, costs.plain_us)
    told = "never" if pays == float("inf") else f"from {pays:.0f} tokens of output on"
    print(
        f"  first token behind {n} of prompt after {first:.1f} ms ({plain:.1f} ms plainly), "
        f"so it pays {told} ({costs.origin})"
    )
    needs = memory(source.memory(draft, n), device and device.memory_bytes)
    fit = "" if device is None else ", fits" if needs["fits"].all() else f", NOT on {device.title}"
    parts = zip(needs["level"], needs["total_bytes"], strict=True)
    told = ", ".join(f"{level} {n_bytes / 1e9:.3g} GB" for level, n_bytes in parts)
    print(f"  memory: {told}{fit} (computed)")


_NOT_THERE = object()


def _asked(options, trace):
    """The drafter asked for with a trace's models; `_NOT_THERE` when it is another method's."""
    head, recorded = trace.eagle, trace.draft
    if head is not None:
        depth = min(4, head.depth) if options.depth is None else options.depth
        head = replace(head, tree_size=options.tree_size, depth=depth)
    if options.method == "ar":
        return None
    if options.method == "eagle2":
        return head if isinstance(recorded, Eagle2) else _NOT_THERE
    if isinstance(recorded, Eagle2):
        return _NOT_THERE
    if options.method == "chain":
        return Chain(recorded.model, options.draft_len)
    if not isinstance(recorded, Refine):
        return _NOT_THERE
    return replace(recorded, draft=head, at_least=options.draft_len, tree_size=options.narrow)


def _add_predict(commands) -> None:
    words = "Predict one setting: replayed acceptance times measured, calibrated or roofline cost."
    parser = command(commands, "predict", _predict, words)
    add = parser.add_argument
    add("--method", choices=METHODS, default="eagle2")
    add("--tree-size", type=int, default=24, metavar="N", help="nodes, the root included; 24")
    add("--depth", type=int, metavar="N", help="levels below the root; 4")
    add("--draft-len", "--at-least", type=int, default=6, metavar="N", dest="draft_len",
        help="of a chain, or hierspec's minimum; 6")  # fmt: skip
    add("--narrow", type=int, metavar="N", help="rows of hierspec's narrow tree")
    add("--against", type=Path, nargs="?", const=False, metavar="STORE",
        help="instead: beside every run of a store; $HSPEC_STORE or ./hspec_runs")  # fmt: skip
    add("--prompt-tokens", type=int, default=512, metavar="N",
        help="of the request whose first token is timed; 512")  # fmt: skip
    add_sources(parser)


# ---- best ------------------------------------------------------------------------------------


def _best(options) -> int:
    from hspec_lab.best import best, search, shortlist

    if options.confirm and options.device:
        raise ValueError("--confirm runs here: it belongs to --costs, not to --device")
    if not 1 <= options.top <= 10:
        raise ValueError(f"--top must be 1..10, got {options.top}")
    sources = {id(source.costs): source for source in priced(options)}
    fits = (lambda costs, draft: sources[id(costs)].fits(draft)) if options.device else None
    pairs = [(source.trace, source.costs) for source in sources.values()]
    table = search(pairs, allow=options.allow, fits=fits)
    if n := table.attrs["beyond"]:
        say(f"note: {n} settings lie beyond the measured curves and were left out")
    found = best(table)
    for row in found.itertuples():
        print(f"{row.device}: {row.advice}")
    shown = ["method", "target", "intermediate", "tree_size", "depth", "top_k", "at_least",
             "narrow", "mean_emitted", "us_per_token", "speedup", "speedup_low", "speedup_high",
             "origin"]  # fmt: skip
    short = shortlist(table, options.top)
    print(
        f"\n{len(table)} settings, the shortlist:\n{short[shown].round(2).to_string(index=False)}"
    )
    for warning in dict.fromkeys(filter(None, short["warnings"])):
        say(f"note: {warning}")
    return _confirm(options, short, list(sources.values())) if options.confirm else 0


def _confirm(options, short, sources) -> int:
    from hspec_lab.best import configs_of
    from hspec_lab.confirm import confirm
    from hspec_lab.confirm_folder import verdict

    asked = sources[0].trace.config
    threads = options.threads or sources[0].measured[0]["conditions"]["threads"]
    some = {"threads": threads, "temperature": asked.temperature, "prompts": asked.prompts}
    configs = configs_of(short[short["method"] != "ar"], **some)
    if not configs:
        say("nothing to confirm: no drafter is among them")
        return 0
    with bar("run") as progress:
        table = confirm(configs, folder=options.out, progress=progress)
    print(f"\nmeasured, interleaved:\n{table.round(3).to_string(index=False)}")
    print(verdict(table))
    return 0


def _add_best(commands) -> None:
    words = "Find the fastest setting, for this device or for others, and confirm it by real runs."
    parser = command(commands, "best", _best, words)
    add_sources(parser)
    add = parser.add_argument
    add("--top", type=int, default=8, metavar="N", help="how many to list, and to confirm; 8")
    add("--confirm", action="store_true", help="run the shortlist, taking turns with ar")
    add("--threads", type=int, metavar="N", help="of these runs; as the stages were measured")
    add("--out", type=Path, metavar="DIR", help="keeps their rows")


# ---- devices ---------------------------------------------------------------------------------


def _devices(options) -> int:
    from hspec_lab import device as devices

    for name in devices.known():
        device = devices.load(name)
        rates = f"{device.bytes_per_s / 1e9:.0f} GB/s, {device.memory_bytes / 1e9:.0f} GB"
        print(f"{name:20} {device.title:42} {rates}")
    return 0


def _add_devices(commands) -> None:
    command(commands, "devices", _devices, "Devices whose roofline is known.")
