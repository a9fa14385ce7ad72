"""Commands about bits: `hspec quantize`, `hspec quality` and `hspec study`."""

from pathlib import Path

from hspec_lab.config import split_model
from hspec_lab.formats import ALGORITHMS
from hspec_lab.options import read_prompts
from hspec_lab.terminal import bar, command, say


def _resumable(work):
    """The command, interrupted with the word that it goes on."""

    def run(options) -> int:
        try:
            return work(options)
        except KeyboardInterrupt:
            say("interrupted; the same command goes on where it was")
            return 130

    return run


def add_bits(commands) -> None:
    """Add the commands of this file."""
    _add_quantize(commands)
    _add_quality(commands)
    _add_study(commands)


# ---- quantize --------------------------------------------------------------------------------


def _quantize(options) -> int:
    if options.list:
        for name, words in ALGORITHMS.items():
            print(f"{name:<12}{words}")
        return 0
    if not options.model:
        raise ValueError("nothing to quantize: give REF, such as zoo:target@w4a16-g128+gptq")
    from hspec_lab.quantize import quantize

    text = _calibration(options)
    for reference in options.model:
        with bar("layer") as progress:
            folder = quantize(
                reference,
                text,
                head=options.head,
                raise_damping=options.raise_damping,
                progress=progress,
            )
        print(folder)
        if options.calibration:
            format = split_model(reference)[1]
            say(f"{reference} stays what the zoo's text makes of it; this one is {folder}@{format}")
    return 0


def _calibration(options):
    """Text files and files of prompts, and how they are cut."""
    from hspec_lab.quantize import Calibration

    windows = {"sequences": options.sequences, "length": options.length}
    windows = {name: n for name, n in windows.items() if n is not None}
    files = options.calibration or []
    prompts = [path for path in files if path.suffix.lower() in (".json", ".jsonl")]
    read = Calibration.of_files([path for path in files if path not in prompts], **windows)
    texts = (*read.texts, *(text for path in prompts for text in read_prompts(path)))
    return Calibration(texts, **windows)


def _add_quantize(commands) -> None:
    words = "Choose a model's weights by an algorithm; made once, then found by its name."
    parser = command(commands, "quantize", _resumable(_quantize), words)
    add = parser.add_argument
    add("model", nargs="*", metavar="REF", help="folder@scheme+algorithm..., w4a16-g128+gptq say")
    add("--list", action="store_true", help="name the algorithms")
    add("--calibration", type=Path, nargs="+", metavar="FILE",
        help="text, or prompts as .json or .jsonl; default: held-out text of the zoo")  # fmt: skip
    add("--sequences", type=int, metavar="N", help="windows of that text; 48")
    add("--length", type=int, metavar="N", help="tokens of a window; 512")
    add("--head", type=Path, metavar="DIR", help="an EAGLE head to rotate with the model")
    add("--raise-damping", action="store_true",
        help="let gptq damp more where a Hessian cannot be factored")  # fmt: skip


# ---- quality ---------------------------------------------------------------------------------


def _quality(options) -> int:
    from hspec_lab.quality_table import as_text, layers_text, measure_table

    with bar("model") as progress:
        table = measure_table(
            options.model,
            reference=options.reference,
            n_windows=options.windows,
            n_prompts=options.prompts,
            threads=options.threads,
            out=options.out,
            progress=progress,
        )
    print(as_text(table))
    if options.layers:
        print(f"\n{layers_text(options.model, options.reference)}")
    if options.out:
        say(f"stored {options.out}")
    return 0


def _add_quality(commands) -> None:
    words = "What quantized models have lost: perplexity, divergence, agreement, tokens a round."
    parser = command(commands, "quality", _quality, words)
    add = parser.add_argument
    add("model", nargs="+", metavar="REF", help="folder@format or zoo:name@format")
    add("--reference", metavar="REF", help="what they are compared with; the same model at fp32")
    add("--windows", type=int, default=40, metavar="N", help="of 512 tokens of held-out text; 40")
    add("--prompts", type=int, default=8, metavar="N", help="for tokens a round, 0: none; 8")
    add("--threads", type=int, default=2, metavar="N")
    add("--layers", action="store_true", help="error and loud channels of every layer too")
    add(
        "--out",
        type=Path,
        metavar="FILE",
        help="a table to store rows in; models it names are not measured again",
    )


# ---- study -----------------------------------------------------------------------------------


def _study(options) -> int:
    from hspec_lab.compat import as_text
    from hspec_lab.study import Plan, run_compat

    named = ("models", "tree_sizes", "depths", "top_k", "n_prompts", "max_new_tokens", "threads",
             "repeats", "device")  # fmt: skip
    given = {name: getattr(options, name) for name in named}
    plan = Plan(**{
        name: tuple(value) if isinstance(value, list) else value
        for name, value in given.items()
        if value is not None
    })  # fmt: skip
    with bar("cell") as progress:
        run_compat(plan, options.out, progress)
    print(as_text(options.out))
    return 0


def _add_study(commands) -> None:
    words = "Measure grids that no single run answers; resumable."
    parser = commands.add_parser("study", help=words, description=words, allow_abbrev=False)
    studies = parser.add_subparsers(required=True, metavar="compat")
    compat = command(
        studies, "compat", _resumable(_study),
        "Formats x tree sizes x depths: cost of verification and drafting, tokens a round, speed.",
    )  # fmt: skip
    add = compat.add_argument
    add("--out", type=Path, required=True, metavar="DIR", help="holds the study; resumed")
    add("--models", nargs="+", metavar="REF", help="default: zoo:target in every format here")
    add("--tree-sizes", nargs="+", type=int, metavar="N", help="nodes, the root included")
    add("--depths", nargs="+", type=int, metavar="N", help="levels below the root")
    for name in ("--top-k", "--n-prompts", "--max-new-tokens", "--threads", "--repeats"):
        add(name, type=int, metavar="N")
    add("--device", metavar="DEVICE", help="cpu, the default, or cuda")
