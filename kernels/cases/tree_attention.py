"""Cases of `tree_attention`."""

import torch

from hspec_kernels.case import CompileCase, ValueCase
from hspec_kernels.tree_attention import (
    BLOCK_N,
    Config,
    _merge_kernel,
    _tree_attention_kernel,
    choose,
    tree_attention,
    tree_attention_ref,
)


def random_tree(generator: torch.Generator, T: int) -> list[int]:
    """Parents of T nodes, each before its children; -1 for the root."""
    return [-1] + [int(torch.randint(0, i, (1,), generator=generator)) for i in range(1, T)]


def bitsets(parents: list[int]) -> torch.Tensor:
    """int64 [T, ceil(T / 64)]: bit i of row j is set when i is j or above it."""
    rows = []
    for node, parent in enumerate(parents):
        rows.append((rows[parent] if node else 0) | 1 << node)
    words = [[(row >> 64 * w) % 2**64 for w in range((len(rows) + 63) // 64)] for row in rows]
    signed = [[word - 2**64 if word >= 2**63 else word for word in row] for row in words]
    return torch.tensor(signed, dtype=torch.int64)


def make(
    T: int, H: int, K: int, D: int, capacity: int, kv_len: int, tree: bool, int8: bool, **options
):
    """Random rows; cache rows that nobody may read are NaN, or 127 with a scale of NaN."""

    def inputs(generator, device, dtype):
        def normal(*shape):
            return torch.randn(*shape, generator=generator)

        kv, kv_scale = normal(capacity, 2 * K, D).to(dtype), None
        kv[kv_len + T :] = torch.nan
        if int8:
            kv = torch.randint(-127, 128, kv.shape, generator=generator, dtype=torch.int8)
            kv_scale = (torch.rand(capacity, 2 * K, generator=generator) / 64 + 1 / 128).half()
            kv_scale[kv_len + T :] = torch.nan
        return {
            "q": normal(T, H, D).to(dtype).to(device),
            "kv": kv.to(device),
            "kv_len": torch.tensor([kv_len], dtype=torch.int32, device=device),
            "ancestors": bitsets(random_tree(generator, T)).to(device) if tree else None,
            "kv_scale": kv_scale.to(device) if int8 else None,
        } | options

    return inputs


# probabilities are rounded to 16 bits, and so is the result: twice 2**-9 / sqrt(3) (bf16)
TOLERANCE = 4e-3

VALUES = [
    ValueCase(
        name=f"T{T}-H{H}-K{K}-D{D}-n{kv_len}-{'tree' if tree else 'path'}"
        f"{'-int8' if int8 else ''}{'-row_invariant' if invariant else ''}",
        op=tree_attention,
        reference=tree_attention_ref,
        make=make(T, H, K, D, capacity, kv_len, tree, int8, row_invariant=invariant),
        tolerance=TOLERANCE,
    )
    for T, H, K, D, capacity, kv_len, tree, int8, invariant in (
        (1, 4, 1, 128, 1, 0, False, False, False),  # a cache of one row
        (1, 2, 2, 64, 700, 699, False, False, False),  # the cache's last row
        (7, 4, 2, 64, 128, 31, True, False, False),
        (5, 3, 1, 16, 64, 0, True, True, False),  # no prefix; a group of 3
        (67, 1, 1, 32, 400, 197, True, False, False),  # two words, two tiles
        (13, 5, 1, 256, 64, 29, False, True, False),
        (3, 2, 1, 64, 300, 127, True, False, True),  # the path crosses a split's end
        (5, 3, 1, 16, 64, 0, True, True, True),
        (4, 2, 1, 128, 200, 131, False, False, True),
        (66, 1, 1, 16, 66, 0, True, False, True),  # two words
    )
]


def compiled(
    T: int, H: int, K: int, D: int, capacity: int, tree: bool, int8: bool = False,
    invariant: bool = False, dtype: str = "fp16", registers: int = 192, shared: int = 85 * 1024,
) -> CompileCase:  # fmt: skip
    config: Config = choose(T, H, K, D, capacity, invariant)
    marks = {"tree": tree, "int8": int8, "row_invariant": invariant}
    return CompileCase(
        name="-".join(
            [f"{dtype}-m{config.block_m}-G{H // K}-D{D}"]
            + [mark for mark, set_ in marks.items() if set_]
        ),
        kernel=_tree_attention_kernel,
        signature={
            "q_ptr": f"*{dtype}",
            "kv_ptr": "*i8" if int8 else f"*{dtype}",
            "scale_ptr": "*fp16" if int8 else "*i32",
            "kv_len_ptr": "*i32",
            "ancestors_ptr": "*i64" if tree else "*i32",
            "part_ptr": "*fp32",
            "lse_ptr": "*fp32",
            "T": "i32",
            "capacity": "i32",
        },
        constants={
            "K": K,
            "G": H // K,
            "D": D,
            "TREE": tree,
            "QUANTIZED": int8,
            "ROW_INVARIANT": invariant,
            "COLUMNS": 64 * ((T + 63) // 64),
            "SPLITS": config.splits,
            "BLOCK_M": config.block_m,
            "BLOCK_N": BLOCK_N,
        },
        num_warps=config.num_warps,
        num_stages=config.num_stages,
        max_registers=registers,
        max_shared_bytes=shared,
        facts={"queries": config.block_m, "splits": config.splits},
    )


_LLAMA_8B = (32, 8, 128, 8192)
_LLAMA_70B = (64, 8, 128, 8192)
COMPILED = [
    compiled(1, *_LLAMA_8B, False, registers=96),
    compiled(8, *_LLAMA_8B, True, registers=144),
    compiled(64, *_LLAMA_8B, True),
    compiled(64, *_LLAMA_70B, True, dtype="bf16"),
    compiled(1, *_LLAMA_8B, False, int8=True),
    compiled(64, *_LLAMA_70B, True, int8=True),
    compiled(1, *_LLAMA_8B, False, invariant=True, registers=176),
    compiled(64, *_LLAMA_8B, True, invariant=True, registers=224),
    compiled(64, *_LLAMA_70B, True, int8=True, invariant=True, registers=255),
    compiled(64, 32, 8, 64, 8192, True, registers=144),
    compiled(64, 8, 4, 256, 8192, True, registers=240, shared=100 * 1024),
    CompileCase(
        name="merge-D128-s32",
        kernel=_merge_kernel,
        signature={"part_ptr": "*fp32", "lse_ptr": "*fp32", "out_ptr": "*fp16", "n_rows": "i32"},
        constants={"D": 128, "SPLITS": 32},
        num_warps=2,
        max_registers=88,
    ),
]
