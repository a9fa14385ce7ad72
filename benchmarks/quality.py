"""Every algorithm on the shipped target: bits, quality, tokens a round, time to quantize.

    python benchmarks/quality.py                  measures what profiles/quality/zoo.json lacks
    python benchmarks/quality.py --page FILE      and writes its table between a page's marks

Takes about a quarter of an hour on two cores; a stopped run goes on where it was.
"""

import argparse
from pathlib import Path

import pandas as pd
from tqdm import tqdm

from hspec_lab.model.shape import read_object
from hspec_lab.quality_table import measure_table

ROOT = Path(__file__).parents[1]
OUT = ROOT / "profiles" / "quality" / "zoo.json"
BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"
FORMATS = (
    "fp32",
    "w8a16",
    "w8a8",
    "w8a8+smooth",
    "w6a16-g128",
    "w4a16-g32",
    "w4a16-g128",
    "w4a16",
    "w4a16-g32+finequant",
    "w4a16-g128+adadim+reference",
    "w4a16-g128+hqq",
    "w4a16-g128+awq",
    "w4a16-g128+gptq",
    "w4a16-g128+awqscale+gptq",
    "w4a16-g128+quarot",
    "w4a16-g128+quarot+gptq",
    "w4a16-g128+svdquant",
    "mxfp4",
    "nf4+reference",
    "fp8a16+reference",
    "w4a8-g128",
    "w4a8-g128-kv4",
    "w4a8-g128-kv4+qoq",
    "w4a4",
    "w4a4+quarot+gptq",
    "w4a16-g128-kv8+gptq",
    "w4a16-g128-kv4+gptq",
    "w4a16-g128-kv2+gptq",
    "w4a16-g128-head4-emb4+gptq",
    "w3a16-g128",
    "w3a16-g128+gptq",
    "w3a16-g128+lim+gptq",
    "w3a16-g128+zd+gptq",
    "w3a16-g128+evopress+gptq",
    "w2a16-g32+gptq",
    "bitstack-3mb+reference",
    "bitstack-4mb+reference",
    "bitstack-6mb+reference",
)


def page_table(found: dict) -> str:
    """The rows of a stored table as Markdown, its conditions below."""
    table = pd.DataFrame(found["rows"]).set_index("scheme").loc[list(FORMATS)]
    columns = {
        "bits": ("bits", "{:.2f}"),
        "MB": ("megabytes", "{:.2f}"),
        "perplexity": ("perplexity", "{:.2f}"),
        "KL": ("kl", "{:.4f}"),
        "agree": ("agreement", "{:.3f}"),
        "chain": ("chain", "{:.2f}"),
        "EAGLE-2": ("eagle2", "{:.2f}"),
        "HierSpec": ("hierspec", "{:.2f}"),
        "loud": ("outliers", "{:.3f}"),
        "layer": ("layer_error", "{:.4f}"),
        "s": ("seconds", "{:.1f}"),
    }
    lines = ["| format | " + " | ".join(columns) + " |", "|---|" + "--:|" * len(columns)]
    for format, row in table.iterrows():
        cells = ["" if row[c] != row[c] else how.format(row[c]) for c, how in columns.values()]
        lines.append(f"| `{format}` | " + " | ".join(cells) + " |")
    about, how = found["conditions"], found["how"]
    lines.append(
        f"\nMeasured on {about['cpu']}, {about['threads']} threads, torch {about['torch']}, "
        f"{about['date'][:10]}; {how['windows']} windows of 512 tokens, {how['prompts']} prompts x "
        "96 tokens."
    )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--page", type=Path, metavar="FILE")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    with tqdm(total=len(FORMATS), unit="model") as bar:

        def progress(done: int, total: int, words: str) -> None:
            bar.set_description(f"{words} ({done} of {total})")

        models = [f"zoo:target@{format}" for format in FORMATS]
        measure_table(
            models, n_windows=24, n_prompts=6, threads=options.threads, out=OUT, progress=progress
        )
    if options.page:
        before, _, rest = options.page.read_text(encoding="utf-8").partition(BEGIN)
        _, _, after = rest.partition(END)
        table = page_table(read_object(OUT))
        options.page.write_text(f"{before}{BEGIN}\n{table}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
