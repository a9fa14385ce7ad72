"""A lean decoder-only transformer that loads Llama, Mistral, Qwen2 and Qwen3 folders."""

from hspec_lab.model.checkpoint import Checkpoint
from hspec_lab.model.eagle import EagleHead
from hspec_lab.model.shape import SUPPORTED
from hspec_lab.model.transformer import Transformer

__all__ = ["SUPPORTED", "Checkpoint", "EagleHead", "Transformer"]
