"""Rounds that stay on the device: fixed memory, fixed launches, one read per round.

The counterpart of `verify` and `draft` for models on kernels, with the same text and the same
rounds.  What a round needs lies in device memory: one text that all levels share, and for each
level how much of it is its own (`n_text`) and how much its cache holds (`kv_len`).  So a level's
draft, its verification, the verdict, the commit and the roll-back of the levels below follow from
numbers that never visit the host, and each is a `Stage`: captured once per shape as a CUDA graph,
then replayed.  Shapes repeat because rows are padded to buckets.

The host keeps the same numbers in Python, moved on by the one thing it reads in a round: the
emitted tokens.  It needs them to pick the bucket, to know when a draft is long enough and to hand
text on.  A hierarchy reads once for each round of each of its levels.

At temperature 0 a level takes its most likely tokens, above it draws them (`rule`), from numbers
that the host has drawn before and put beside the text (`dice`).
"""

from hspec_lab.runtime.chain import DeviceChain
from hspec_lab.runtime.dice import Dice
from hspec_lab.runtime.eagle2 import DeviceEagle2
from hspec_lab.runtime.level import DeviceLevel
from hspec_lab.runtime.memory import Memory
from hspec_lab.runtime.refine import DeviceRefine

__all__ = ["DeviceChain", "DeviceEagle2", "DeviceLevel", "DeviceRefine", "Dice", "Memory"]
