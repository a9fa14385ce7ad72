"""Compile kernels ahead of time, without a GPU, and read what they cost from the machine code.

    python -m hspec_kernels.compiled [operation ...] [--all] [--json | --page FILE]

Registers, spills and shared memory come from the cubin, instructions from its disassembly, with the
tools inside Triton's wheel.  Must run in a process without TRITON_INTERPRET: an interpreted kernel
cannot be compiled.

    source  triton.compile(ASTSource, GPUTarget); sm_80 (A100), sm_90 (H100), sm_100 (B200)
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from hspec_kernels.case import CompileCase, compile_cases, operations

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
_RESOURCES = re.compile(r"REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)")
_LABEL = re.compile(r"^\s*(\.L_x_\d+):")
_BRANCH = re.compile(r"BRA\S* .*`\((\.L_x_\d+)\)")
# "/*0a30*/  @!P0 LDG.E.128 R4, ..." -> LDG
_INSTRUCTION = re.compile(r"^\s*/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_]*)")

# integer work that turns packed weights into numbers, and tensor-core instructions
_UNPACKING = ("PRMT", "LOP3", "SHF", "I2F", "I2FP", "HADD2", "HFMA2", "HMUL2", "HADD2_32")
_TENSOR = ("HMMA", "IMMA", "QMMA", "HGMMA", "IGMMA", "QGMMA", "UTCHMMA", "UTCIMMA", "UTCQMMA")


@dataclass(frozen=True, slots=True)
class Compiled:
    """One kernel for one target.

    Attributes:
        instructions: how often each opcode occurs, without its suffixes.
        loop: instructions of the longest loop; 0 without one.
        loop_per_weight: what a weight costs there, per thread; None where nothing counts weights.
    """

    operation: str
    case: str
    target: int
    registers: int
    spill_bytes: int
    shared_bytes: int
    num_warps: int
    instructions: dict[str, int]
    loop: int = 0
    loop_per_weight: float | None = None

    @property
    def tensor_instructions(self) -> int:
        return sum(self.instructions.get(name, 0) for name in _TENSOR)

    def broken_budgets(self, case: CompileCase) -> list[str]:
        """What this kernel uses beyond what its case allows."""
        found = []
        if self.spill_bytes:
            found.append(f"{self.spill_bytes} bytes spilled")
        if self.registers > case.max_registers:
            found.append(f"{self.registers} registers, {case.max_registers} allowed")
        if self.shared_bytes > case.max_shared_bytes:
            found.append(f"{self.shared_bytes} B shared, {case.max_shared_bytes} allowed")
        if "weights" in case.facts and not self.tensor_instructions:
            found.append("no tensor-core instruction: the compiler gave up")
        most = case.max_loop_per_weight
        # Blackwell's tensor cores take no operand from registers, which costs what it costs
        if most is not None and self.target < 100 and self.loop_per_weight > most:
            found.append(f"{self.loop_per_weight:.2f} instructions a weight, {most} allowed")
        return found


def compile_case(operation: str, case: CompileCase, target: int) -> Compiled:
    """Compile one case for compute capability `target`.

    Raises:
        RuntimeError: kernels are interpreted in this process.
    """
    if os.environ.get("TRITON_INTERPRET") == "1":
        raise RuntimeError("TRITON_INTERPRET=1 is set; compile in a process without it")
    kernel = compile_kernel(case, target)
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernel.cubin"
        cubin.write_bytes(kernel.asm["cubin"])
        usage = _tool("cuobjdump", "--dump-resource-usage", str(cubin))
        listing = _tool("nvdisasm", "-c", str(cubin))
    registers, stack, _, local = (int(n) for n in _RESOURCES.search(usage).groups())
    opcodes = Counter(m[1] for m in map(_INSTRUCTION.match, listing.splitlines()) if m)
    loop, weights = longest_loop(listing), case.facts.get("weights")
    return Compiled(
        operation=operation,
        case=case.name,
        target=target,
        registers=registers,
        spill_bytes=stack + local,
        shared_bytes=kernel.metadata.shared,
        num_warps=case.num_warps,
        instructions=dict(sorted(opcodes.items())),
        loop=loop,
        loop_per_weight=loop * 32 * case.num_warps / weights if weights else None,
    )


def longest_loop(listing: str) -> int:
    """Instructions between a label and the farthest branch back to it."""
    labels, longest, n = {}, 0, 0
    for line in listing.splitlines():
        if label := _LABEL.match(line):
            labels[label[1]] = n
        elif _INSTRUCTION.match(line):
            n += 1
            branch = _BRANCH.search(line)
            # a branch to itself is padding behind the end
            if branch and branch[1] in labels:
                longest = max(longest, n - labels[branch[1]])
    return longest


def compile_kernel(case: CompileCase, target: int):
    """What `triton.compile` gives for one case."""
    names = case.kernel.arg_names
    missing = [n for n in names if n not in case.signature and n not in case.constants]
    unknown = [n for n in (*case.signature, *case.constants) if n not in names]
    if missing or unknown:
        raise ValueError(f"{case.name}: signature lacks {missing}, has unknown {unknown}")
    types = {name: case.signature.get(name, "constexpr") for name in names}
    aligned = [i for i, name in enumerate(names) if types[name][0] == "*" or name in case.divisible]
    source = ASTSource(
        fn=case.kernel,
        signature=types,
        constexprs=dict(case.constants),
        attrs={(i,): [["tt.divisibility", 16]] for i in aligned},
    )
    options = {"num_warps": case.num_warps, "num_stages": case.num_stages}
    return triton.compile(source, target=GPUTarget("cuda", target, 32), options=options)


def _tool(name: str, *arguments: str) -> str:
    done = subprocess.run([TOOLS / name, *arguments], capture_output=True, text=True, check=True)
    return done.stdout


def compile_all(names: list[str], every: bool = False) -> Iterator[tuple[Compiled, list[str]]]:
    """Compiled cases of some operations and which budgets each breaks; on all processors."""
    wanted = [
        (operation, i, target)
        for operation in names
        for i, case in enumerate(compile_cases(operation))
        for target in (case.targets if case.chosen or every else ())
    ]
    # spawned: a kernel's own objects do not travel, and Triton is not made for being forked
    with ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn")) as pool:
        yield from pool.map(_compile_numbered, wanted)


def _compile_numbered(what: tuple[str, int, int]) -> tuple[Compiled, list[str]]:
    operation, i, target = what
    case = compile_cases(operation)[i]
    made = compile_case(operation, case, target)
    return made, made.broken_budgets(case)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("operations", nargs="*", help=f"of {', '.join(operations())}; default all")
    parser.add_argument("--all", action="store_true", help="all configurations, not the chosen")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    parser.add_argument("--page", type=Path, metavar="FILE", help="write a table as Markdown")
    options = parser.parse_args()
    unknown = set(options.operations) - set(operations())
    if unknown:
        parser.error(f"no operation {sorted(unknown)}; there are: {', '.join(operations())}")
    rows, n_broken = [], 0
    for made, broken in compile_all(options.operations or operations(), options.all):
        n_broken += bool(broken)
        rows.append(made)
        if options.json:
            print(json.dumps(asdict(made) | {"broken": broken}), flush=True)
        else:
            print(_line(made), "; ".join(broken), flush=True)
    if options.page:
        options.page.write_text(page(rows), encoding="utf-8")
    return min(n_broken, 1)


def _line(made: Compiled) -> str:
    return (
        f"{made.operation:20} {made.case:32} sm_{made.target:<4} {made.registers:4} registers "
        f"{made.spill_bytes:4} B spilled {made.shared_bytes:7} B shared {made.num_warps} warps"
    )


# per SM: registers, bytes of shared memory, warps
SM_LIMITS = {80: (65536, 164 << 10, 64), 90: (65536, 228 << 10, 64), 100: (65536, 228 << 10, 64)}


def programs_per_sm(made: Compiled) -> int:
    """How many programs fit one multiprocessor at a time, by registers, shared memory and warps."""
    registers, shared, warps = SM_LIMITS[made.target]
    per_warp = -(-made.registers // 8) * 8 * 32  # allocated in steps of 256 per warp
    by_shared = shared // (made.shared_bytes + 1024)  # each program also pays for a system KiB
    return min(registers // (per_warp * made.num_warps), by_shared, warps // made.num_warps, 32)


def page(rows: list[Compiled]) -> str:
    """Markdown of what was compiled."""
    lines = [
        PAGE.format(triton=triton.__version__),
        "| operation | configuration | target | registers | spilled | shared | warps "
        "| programs per SM | unpacking | tensor core | all instructions | of the loop, a weight |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for made in rows:
        counts = made.instructions
        unpacking = sum(counts.get(name, 0) for name in _UNPACKING)
        lines.append(
            f"| {made.operation} | {made.case} | sm_{made.target} | {made.registers} "
            f"| {made.spill_bytes} | {made.shared_bytes} | {made.num_warps} "
            f"| {programs_per_sm(made)} | {unpacking} | {made.tensor_instructions} "
            f"| {sum(counts.values())} "
            f"| {'' if made.loop_per_weight is None else f'{made.loop_per_weight:.2f}'} |"
        )
    return "\n".join(lines) + "\n"


PAGE = """# Kernels, compiled

Made by `python -m hspec_kernels.compiled --page docs/kernels.md` with Triton {triton}, without a
GPU: what the compiler made of each chosen configuration for A100 (sm_80), H100 (sm_90) and B200
(sm_100). Registers are per thread, spills are bytes per thread, shared memory is bytes per program.
Instructions are counted in the whole program, not in its main loop; *unpacking* are the integer and
half-precision ones that packed weights need, *tensor core* the matrix ones. None of this is a time.

*Of the loop, a weight* is what a thread executes in the main loop for each weight of its tile. It
bounds the rate: an H200 issues about 132 x 4 x 32 x 1.76e9 = 3.0e13 of them a second, and 4.8 TB/s
are 9.0e12 4-bit weights with their scales, so more than 3.3 cannot keep its memory busy.
"""


if __name__ == "__main__":
    sys.exit(main())
