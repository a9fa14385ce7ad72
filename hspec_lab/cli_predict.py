"""Commands about prediction: `hspec record`, `hspec predict`, `hspec best` and `hspec devices`."""

from dataclasses import replace
from pathlib import Path

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

    head = Eagle2(options.depth * options.top_k + 1, options.depth, options.top_k, options.head)
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
    print(
        f"{options.out}: {trace.n_counted} positions, {len(trace.states)} states; at the largest "
        f"sizes {rounds['n_emitted'].mean():.2f} tokens a round ({low:.2f} to {high:.2f}, replayed)"
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


# ---- what predictions are made of ----------------------------------------------------------


def _add_sources(parser) -> None:
    add = parser.add_argument
    add("--trace", nargs="+", metavar="DIR", help="default: those that ship with the zoo")
    add("--costs", type=Path, metavar="DIR",
        help="measured with `hspec measure --in-rounds`; default: those that ship")  # fmt: skip
    add("--device", nargs="+", metavar="NAME",
        help="instead: the roofline of devices (see `hspec devices`), or all")  # fmt: skip
    add("--calibrate", type=Path, metavar="DIR",
        help="cost curves measured on that device: the roofline is fitted to them")  # fmt: skip
    add("--target", metavar="REF", help="what would run there, shape:llama-3-70b@w4a16-g128 say")
    add("--intermediate", metavar="REF", help="its intermediate model")
    add("--context", type=int, metavar="N", help="tokens stored; default: as measured, or 512")
    add("--allow", nargs="+", default=[], metavar="WHAT",
        choices=("scheme", "model", "tokenizer", "top_k"),
        help="where acceptance and costs may differ: scheme, model, tokenizer, top_k")  # fmt: skip


def _traces(options) -> list:
    from hspec_lab.acceptance_folder import read_trace, shipped_traces

    if options.trace:
        return [read_trace(folder) for folder in options.trace]
    return shipped_traces()


def _stages(options) -> tuple:
    from hspec_lab.stages_folder import read_stages, shipped_stages

    return read_stages(options.costs) if options.costs else shipped_stages()


def _pairs(options, traces) -> list[tuple]:
    """Traces with the stages that they are priced with."""
    if options.device:
        return _on_devices(options, traces)
    if options.calibrate or options.target or options.intermediate:
        raise ValueError("--calibrate, --target and --intermediate belong to --device")
    from hspec_lab.cost import stage_costs

    measured = _stages(options)
    pairs, problems = [], []
    for trace in traces:
        drafts = [trace.draft]
        if isinstance(trace.draft, Refine):
            # a chain's rounds are measured for themselves
            drafts.append(Chain(trace.draft.model, trace.draft.at_least))
        try:
            found = [stage_costs(measured, trace.config.target, d, options.context) for d in drafts]
        except ValueError as error:
            problems.append(f"{trace.name}: {error}")
            continue
        pairs += [(trace, costs) for costs in found]
    for problem in problems if pairs else ():
        say(f"note: left out {problem}")
    if not pairs:
        raise ValueError(f"no trace has measured stages: {problems[0] if problems else 'none'}")
    return pairs


def _on_devices(options, traces) -> list[tuple]:
    from hspec_lab import device as devices
    from hspec_lab.roofline import calibrate, stage_costs
    from hspec_lab.store import read_cost

    names = devices.known() if options.device == ["all"] else options.device
    if options.calibrate and len(names) != 1:
        raise ValueError("--calibrate fits one device's roofline: name that device alone")
    pairs = []
    for name in names:
        device, fitted = devices.load(name), None
        if options.calibrate:
            fitted = calibrate(device, read_cost(options.calibrate)[1])
        for trace in traces:
            config, below = trace.config, None
            if isinstance(config.draft, Chain | Refine):
                below = options.intermediate or config.draft.model
            where = {"top_k": trace.eagle.top_k if trace.eagle else 8, "calibration": fitted}
            where["context"] = options.context or 512
            try:
                costs = stage_costs(device, options.target or config.target, below, **where)
            except ValueError as error:
                say(f"note: left out {name}: {error}")
                break
            pairs.append((trace, costs))
    if not pairs:
        raise ValueError(f"no stages for {', '.join(names)}")
    return pairs


# ---- predict ---------------------------------------------------------------------------------


def _predict(options) -> int:
    if options.against is not None:
        return _against(options)
    from hspec_lab.predict import predict

    shown = []
    for trace, costs in _pairs(options, _traces(options)):
        draft = _asked(options, trace)
        if draft is _NOT_THERE:
            continue
        found = predict(trace, draft, costs, allow=options.allow)
        shown.append(found)
        low, high = found.speedup_low, found.speedup_high
        print(
            f"{costs.device}: {costs.target}, {draft!r}\n"
            f"  {found.us_per_token:.0f} us a token ({found.us_per_token_low:.0f} to "
            f"{found.us_per_token_high:.0f}), {found.speedup:.2f}x ar ({low:.2f} to {high:.2f}), "
            f"{found.mean_emitted:.2f} tokens a round"
        )
        table = found.phases[["phase", "us_per_emitted", "us_per_round", "share"]].round(3)
        print("  " + table.to_string(index=False).replace("\n", "\n  "))
        _tell_request(options, costs, draft, found)
        print(f"  {found.caption()['origin']}: {found.caption()['note']}\n")
    if not shown:
        raise ValueError(f"no trace answers for {options.method}; record one with `hspec record`")
    return 0


def _against(options) -> int:
    """Predicted beside measured, for every stored run."""
    from hspec_lab.against import accuracy, against_runs
    from hspec_lab.lab import open_store

    if options.device:
        raise ValueError("--against compares with runs of this device: leave out --device")
    traces = _traces(options)
    costs = [costs for _, costs in _pairs(options, traces)]
    runs = list(open_store(None if options.against == Path() else options.against))
    if not runs:
        raise ValueError("no runs in the store")
    table = against_runs([(run.head, run.rounds, run.spans) for run in runs], traces, costs)
    shown = ["method", "format", "mean_emitted", "mean_emitted_measured", "ar_steps",
             "ar_steps_measured", "error", "trace", "problem"]  # fmt: skip
    print(table[shown].round(3).fillna("").to_string(index=False))
    found = accuracy(table)
    print(
        f"\n{found['n']} of {len(table)} runs compared in ar steps: median error "
        f"{found['median']:.1%}, 95th percentile {found['p95']:.1%} ({table.attrs['origin']})"
    )
    return 0


def _tell_request(options, costs, draft, found) -> None:
    """What a whole request takes: memory, the first token, and when speculation pays."""
    from hspec_lab.request import break_even, memory, time_to_first_token

    device = _device_of(costs) if options.device else None
    prefills = _prefills(options, costs, draft, device)
    n = options.prompt_tokens
    first, plain = (time_to_first_token(some, n)["us"].sum() / 1e3 for some in prefills)
    pays = break_even(1e3 * first, 1e3 * plain, found.us_per_token, costs.plain_us)
    told = "never" if pays == float("inf") else f"from {pays:.0f} tokens of output on"
    print(
        f"  first token behind {n} of prompt after {first:.1f} ms ({plain:.1f} ms plainly), "
        f"so it pays {told} ({costs.origin})"
    )
    kind = "cpu" if device is None else device.kind
    needs = memory(_memory(kind, costs, draft), device and device.memory_bytes)
    fit = "" if device is None else ", fits" if needs["fits"].all() else f", NOT on {device.title}"
    parts = zip(needs["level"], needs["total_bytes"], strict=True)
    told = ", ".join(f"{level} {n_bytes / 1e9:.3g} GB" for level, n_bytes in parts)
    print(f"  memory: {told}{fit} (computed)")


def _device_of(costs):
    from hspec_lab import device as devices

    titles = {devices.load(name).title: name for name in devices.known()}
    return devices.load(titles[costs.device])


def _prefills(options, costs, draft, device) -> tuple[list, list]:
    """Prefills of all levels, and of the target in plain decoding."""
    from hspec_lab.config import method_of
    from hspec_lab.request import Prefill, prefills_of_rounds
    from hspec_lab.roofline import prefill_us, split_reference

    if device is None:
        table = _stages(options)[1]
        methods = (method_of(draft), "ar")
        return tuple(prefills_of_rounds(table, costs.target, method) for method in methods)
    names = {"target": costs.target}
    if isinstance(draft, Chain | Refine):
        names["intermediate"] = costs.intermediate
    models = {level: split_reference(name) for level, name in names.items()}
    found = [
        Prefill(level, lambda n, model=model: prefill_us(*model, n, device), costs.origin)
        for level, model in models.items()
    ]
    return found, found[:1]


_NOT_THERE = object()


def _asked(options, trace):
    """The drafter asked for with a trace's models; `_NOT_THERE` when it is another method's."""
    head, recorded = trace.eagle, trace.draft
    if head is not None:
        depth = options.depth or min(4, head.depth)
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
    add("--against", type=Path, nargs="?", const=Path(), metavar="STORE",
        help="instead: beside every run of a store; $HSPEC_STORE or ./hspec_runs")  # fmt: skip
    add("--prompt-tokens", type=int, default=512, metavar="N",
        help="of the request whose first token is timed; 512")  # fmt: skip
    _add_sources(parser)


# ---- best ------------------------------------------------------------------------------------


def _best(options) -> int:
    from hspec_lab.best import best, search, shortlist

    pairs = _pairs(options, _traces(options))
    table = search(pairs, allow=options.allow, fits=_fits if options.device else None)
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
    return _confirm(options, short) if options.confirm else 0


def _fits(costs, draft) -> bool:
    """Whether a configuration fits its device's memory."""
    from hspec_lab.roofline import fits

    device = _device_of(costs)
    return fits(device, _memory(device.kind, costs, draft).values())


def _memory(kind: str, costs, draft) -> dict:
    """What each level of a configuration needs, by name."""
    from hspec_lab.acceptance import head_draft
    from hspec_lab.roofline import head_bytes, memory_bytes, split_reference
    from hspec_lab.scheme import parse

    names = {"target": costs.target}
    if isinstance(draft, Chain | Refine):
        names["intermediate"] = costs.intermediate
    shapes = {level: split_reference(name) for level, name in names.items()}
    found = {level: memory_bytes(*shape, costs.context, kind) for level, shape in shapes.items()}
    if head_draft(draft) is not None:
        serves = shapes.get("intermediate", shapes["target"])[0]
        scheme = parse(costs.head.rpartition("@")[2] if "@" in costs.head else "fp32")
        found["head"] = head_bytes(serves, scheme, costs.context, kind)
    return found


def _confirm(options, short) -> int:
    if options.device:
        raise ValueError("--confirm runs here: it belongs to --costs, not to --device")
    from hspec_lab.best import configs_of
    from hspec_lab.confirm import MOST_CONFIRMED, confirm
    from hspec_lab.confirm_folder import verdict

    configs = configs_of(short[short["method"] != "ar"], threads=options.threads)
    with bar("run") as progress:
        table = confirm(configs[: MOST_CONFIRMED - 1], folder=options.out, progress=progress)
    print(f"\nmeasured, interleaved:\n{table.round(3).to_string(index=False)}")
    print(verdict(table))
    return 0


def _add_best(commands) -> None:
    words = "Find the fastest setting, for this device or for others, and confirm it by real runs."
    parser = command(commands, "best", _best, words)
    _add_sources(parser)
    add = parser.add_argument
    add("--top", type=int, default=8, metavar="N", help="how many to list, and to confirm; 8")
    add("--confirm", action="store_true", help="run the shortlist, taking turns with ar")
    add("--threads", type=int, default=2, metavar="N", help="of these runs; 2")
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
