"""What the shipped models are worth, measured on the shipped files, and the card that says so."""

import json
import lzma
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import torch

from hspec_lab import breakdown, zoo
from hspec_lab.config import Config, Eagle2
from hspec_lab.experiment import Session, environment
from hspec_lab.pipeline import Models

TREE = Eagle2(tree_size=24, depth=4, top_k=8)


def evaluate_zoo(n_prompts: int, max_new_tokens: int = 128) -> dict:
    """Decode the held-out prompts with the shipped models, greedily, in fp32.

    Returns:
        loop_share, agreement and agreement_outside_loops of the intermediate model with the
        target's greedy text, and tokens per round of both heads, in all and outside loops.
    """
    config = Config(n_prompts=n_prompts, max_new_tokens=max_new_tokens)
    models = Models()
    plain = _decoded(config, models)
    tokens = plain.tables()["tokens"]
    looping = breakdown.in_loop(tokens)
    same = torch.cat([_agreement(plain, models, index) for index in range(n_prompts)]).numpy()
    found = {
        "loop_share": float(looping.mean()),
        "agreement": float(same.mean()),
        "agreement_outside_loops": float(same[~looping.to_numpy()].mean()),
    }
    for name in ("target", "intermediate"):
        session = _decoded(replace(config, target=f"zoo:{name}@fp32", draft=TREE), models)
        tables = session.tables()
        numbers = breakdown.summary(tables["rounds"], tables["spans"], tables["tokens"])
        found[f"{name}_emitted"] = numbers["mean_emitted"]
        found[f"{name}_emitted_outside_loops"] = numbers["mean_emitted_outside_loops"]
    return found


def _decoded(config: Config, models: Models) -> Session:
    session = Session(config, models)
    for index in range(len(session.prompts)):
        for _ in session.rounds_of(index):
            pass
    return session


@torch.inference_mode()
def _agreement(plain: Session, models: Models, index: int) -> torch.Tensor:
    """bool [n]: where the intermediate model's next token is the one the target wrote."""
    model = models.transformer("zoo:intermediate@fp32", False, "cpu")
    output = plain.output_ids(index)
    ids = plain.prompt_ids[index] + output
    logits = model.logits(model.read(ids[:-1], model.new_cache(len(ids))))
    return logits[-len(output) :].argmax(dim=-1) == torch.tensor(output)


def compressed_bits_per_byte() -> float:
    """What `xz -9e` needs for the held-out modules, one behind the other."""
    text = "".join(_held_out().values()).encode()
    packed = lzma.compress(text, preset=9 | lzma.PRESET_EXTREME)
    return 8 * len(packed) / len(text)


def _held_out() -> dict[str, str]:
    return json.loads((zoo.ROOT / "text" / "held_out.json").read_text(encoding="utf-8"))


def write_card(facts: dict, measured: dict, path: Path) -> None:
    """Write `MODEL_CARD.md`.

    Args:
        facts: what `train.zoo.export_zoo` returned.
        measured: what `evaluate_zoo` returned.
    """
    conditions = environment(Config())
    steps = " ".join(
        f"{k.replace('-eagle2', '_head')}={v['steps']}" for k, v in facts["stages"].items()
    )
    command = f"hspec zoo train --work zoo_train --steps {steps} own_tokens={facts['own_tokens']}"
    stages, held_out = facts["stages"], _held_out()
    names = ", ".join(f"`{name}`" for name in held_out)
    rows = []
    for name, stage in stages.items():
        bits = f"{stage['bits_per_byte']:.3f}" if "bits_per_byte" in stage else ""
        tokens = stage["steps"] * facts["tokens_per_step"] / 1e6
        rows.append(
            f"| {name} | {stage['parameters'] / 1e6:.2f} M | {tokens:.1f} M | "
            f"{stage['seconds'] / 60:.0f} min | {bits} |"
        )
    n_bytes = sum(len(text.encode()) for text in held_out.values())
    path.write_text(
        CARD.format(
            rows="\n".join(rows),
            names=names,
            n_modules=len(held_out),
            n_bytes=n_bytes,
            xz=compressed_bits_per_byte(),
            date=datetime.now(UTC).date().isoformat(),
            command=command,
            **{k: f"{v:.3f}" for k, v in measured.items()},
            cpu=conditions["cpu"],
            n_prompts=len(zoo.prompts()),
            **{k: facts[k] for k in ("python", "torch", "corpus_sha256")},
        ),
        encoding="utf-8",
    )


CARD = """# The zoo

Small models that ship with hspec_lab so that everything can be tried, measured and tested without
a download. They write Python, badly; what matters is that their weights, their text and their
acceptance are real.

| model | parameters | tokens seen | time on two CPU cores | bits per byte, held-out |
|---|---|---|---|---|
{rows}

`target` and `intermediate` are Llama models with one byte-level BPE tokenizer of 4,096 entries and
1,024 positions, stored in bf16; `AutoModelForCausalLM` and `AutoTokenizer` load them. The two
`-eagle2` folders hold EAGLE-2 heads (one decoder layer and the projection that joins an embedding
with a feature).

## How good

Bits per byte on {n_modules} held-out modules ({n_bytes} bytes), context up to 1,024 tokens, weights
as they ship; `xz -9e` needs {xz:.3f} on the same text.

Greedy, fp32, {n_prompts} held-out prompts, 128 new tokens each; a token is in a loop when the
16-gram it ends already stands in the output:

| | all tokens | outside loops |
|---|---|---|
| share of the target's output in loops | {loop_share} | |
| intermediate model's next token is the target's | {agreement} | {agreement_outside_loops} |
| tokens per round, target with its head (24 nodes, depth 4, top-k 8) | {target_emitted} | \
{target_emitted_outside_loops} |
| tokens per round, intermediate model with its head (same tree) | {intermediate_emitted} | \
{intermediate_emitted_outside_loops} |

## Made from what

The `.py` files of the Python {python} standard library (sha256 of the training text
`{corpus_sha256}`), without generated tables. Held-out modules were chosen by a hash of their path,
and test files named after one were left out; other tests that use one were not. Held out:
{names}.

The intermediate model learned from the target's probabilities on text that the target wrote itself,
continuing the training text; each head from its model's features and probabilities, half on such
text and half on the training text.

Trained {date} on {cpu}, torch {torch}, with

    {command}

The held-out modules and the prompts cut from them are Python's own source, under the licence in
`text/LICENSE`.
"""
