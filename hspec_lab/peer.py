"""The same decoding by transformers, to compare with: `generate` and assisted generation.

Same weights, same dtype (fp32), greedy, and timed the same way as ours: from the moment the first
token is out to the last one, so neither side's prefill counts.
"""

import time
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM
from transformers.generation.streamers import BaseStreamer
from transformers.utils import logging


class _Stamps(BaseStreamer):
    """Notes when tokens come out, and how many at a time."""

    def __init__(self):
        self.times, self.counts = [], []

    def put(self, value) -> None:
        self.times.append(time.perf_counter())
        self.counts.append(value.numel())

    def end(self) -> None:
        pass


class Peer:
    """transformers' greedy decoding of one target, plain or with an assistant.

    Args:
        target, assistant: Hugging Face folders; None: plain `generate`.
    """

    def __init__(self, target: Path, assistant: Path | None = None):
        logging.disable_progress_bar()
        self.target = AutoModelForCausalLM.from_pretrained(target, dtype=torch.float32).eval()
        self.assistant = None
        if assistant is not None:
            loaded = AutoModelForCausalLM.from_pretrained(assistant, dtype=torch.float32)
            self.assistant = loaded.eval()

    @property
    def method(self) -> str:
        return "generate" if self.assistant is None else "assisted"

    @torch.inference_mode()
    def measure_prompt(
        self, prompt: list[int], max_new_tokens: int
    ) -> tuple[list[int], int, float]:
        """Decode behind a prompt.

        Returns:
            ids: the output.
            n_timed: output tokens behind the first that came out.
            seconds: the time they took.
        """
        stamps, ids = _Stamps(), torch.tensor([prompt])
        options = {} if self.assistant is None else {"assistant_model": self.assistant}
        whole = self.target.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=max_new_tokens,
            do_sample=False,
            streamer=stamps,
            pad_token_id=self.target.config.eos_token_id or 0,
            **options,
        )
        # the first `put` is the prompt, the second the first tokens
        n_timed = sum(stamps.counts[2:])
        return whole[0, len(prompt) :].tolist(), n_timed, stamps.times[-1] - stamps.times[1]
