"""Run one operation's value cases in this process and print how far kernel and definition differ.

    TRITON_INTERPRET=1 python -m hspec_lab.kernel_trial accept_greedy_tree

Prints one line of JSON, a list of rows; `kernel_facts.trial` starts it and reads them.
"""

import json
import os
import sys

import torch

from hspec_kernels.case import operations, rms_ratio, value_cases


def main(operation: str) -> None:
    """Try the cases of an operation on CPU tensors, rows in fp16."""
    if os.environ.get("TRITON_INTERPRET") != "1":
        raise SystemExit("TRITON_INTERPRET=1 must be set: there is no GPU to run this on")
    if operation not in operations():
        raise SystemExit(f"no operation {operation!r}; there are {', '.join(operations())}")
    rows = []
    for number, case in enumerate(value_cases(operation)):
        generator = torch.Generator().manual_seed(number)
        given = case.make(generator, "cpu", torch.float16)
        # an operation may write into what it is given
        copies = {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in given.items()}
        difference = _difference(case.op(**given), case.reference(**copies))
        rows.append(
            {
                "case": case.name,
                "difference": difference,
                "tolerance": case.tolerance,
                "agrees": difference <= case.tolerance,
            }
        )
    print(json.dumps(rows))


def _difference(out, reference) -> float:
    """The largest over all outputs; infinite where integers differ."""
    out, reference = (x if isinstance(x, tuple) else (x,) for x in (out, reference))
    found = []
    for one, other in zip(out, reference, strict=True):
        if one.dtype.is_floating_point:
            found.append(rms_ratio(one, other))
        else:
            found.append(0.0 if torch.equal(one, other) else float("inf"))
    return max(found)


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) == 2 else "")
