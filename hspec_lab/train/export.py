"""From training state to the folders that ship: bf16, small shards, Hugging Face layout."""

import json
import shutil
import sysconfig
from pathlib import Path

from safetensors.torch import save_file
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing
from torch import nn

from hspec_lab.train.corpus import SourceFile
from hspec_lab.train.llama import Shape, hf_config
from hspec_lab.train.tokenizer import BOS, EOS, save_tokenizer

SHARD_BYTES = 15_000_000
PROMPT_LINES = 32
STARTS = ("def ", "class ", "    def ", "async def ")


def export_model(model: nn.Module, shape: Shape, folder: Path) -> None:
    """Write weights and `config.json`; several files and an index where one would be too large."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.safetensors*"):
        old.unlink()
    tensors = {k: v.detach().cpu().bfloat16().contiguous() for k, v in model.state_dict().items()}
    shards, sizes = [{}], [0]
    for name, tensor in sorted(tensors.items()):
        if sizes[-1] + tensor.nbytes > SHARD_BYTES:
            shards.append({})
            sizes.append(0)
        shards[-1][name] = tensor
        sizes[-1] += tensor.nbytes
    names = ["model.safetensors"]
    if len(shards) > 1:
        names = [f"model-{i + 1:05}-of-{len(shards):05}.safetensors" for i in range(len(shards))]
        where = {key: name for name, shard in zip(names, shards, strict=True) for key in shard}
        index = {"metadata": {"total_size": sum(sizes)}, "weight_map": where}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1) + "\n")
    for name, shard in zip(names, shards, strict=True):
        save_file(shard, folder / name, metadata={"format": "pt"})
    config = hf_config(shape)
    if not hasattr(model, "lm_head"):  # a head: transformers must not take it for a whole model
        config |= {"architectures": ["LlamaForCausalLM"], "draft_head": "eagle2"}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def export_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Write the tokenizer such that encoding begins with the begin-of-text token."""
    tokenizer.post_processor = TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    save_tokenizer(tokenizer, folder)
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": EOS,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 1024,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")


def prompts_from(files: list[SourceFile]) -> list[str]:
    """Two prompts per held-out module: `PROMPT_LINES` lines from a definition on.

    The first definition behind one third and behind two thirds of the file; all files' first
    prompts come before all second ones, so that any number of them covers as many files.
    """
    found = []
    for share in (1 / 3, 2 / 3):
        for file in files:
            lines = file.text.splitlines(keepends=True)
            first = round(share * len(lines))
            starts = [i for i, line in enumerate(lines) if line.startswith(STARTS) and i >= first]
            if starts and starts[0] + PROMPT_LINES < len(lines):
                text = "".join(lines[starts[0] : starts[0] + PROMPT_LINES])
                # a line break and the indentation behind it are one token: a prompt that ended in
                # the bare break would tell the model that the next line is not indented
                found.append(text.rstrip())
    return found


def export_text(files: list[SourceFile], folder: Path) -> None:
    """Write the held-out modules, the prompts, and the licence under which they come."""
    folder.mkdir(parents=True, exist_ok=True)
    licence = Path(sysconfig.get_paths()["stdlib"]) / "LICENSE.txt"
    if not licence.is_file():
        raise ValueError(f"{licence} is missing; the held-out text ships with Python's licence")
    shutil.copyfile(licence, folder / "LICENSE")
    held_out = [file for file in files if file.part == "held_out"]
    texts = {file.name: file.text for file in held_out}
    (folder / "held_out.json").write_text(json.dumps(texts, indent=1) + "\n", encoding="utf-8")
    prompts = {"lines": PROMPT_LINES, "prompts": prompts_from(held_out)}
    (folder / "prompts.json").write_text(json.dumps(prompts, indent=1) + "\n", encoding="utf-8")
