"""Triton kernels, one operation a file; tensors in, tensors out; imported as `hspec_kernels`.

    from hspec_kernels.w4a16_matmul import w4a16_matmul

Every file has a plain-torch definition `<op>_ref`, a checked wrapper `<op>`, a visible list of
`CONFIGS` and the kernel itself.  `cases/` says, once for tests, compilation and benchmarks, what
inputs an operation is tried on and what its compiled form may cost.
"""

import os

# budgets and tolerances were found with fused multiply-adds; unset, 3.9 warns at every compilation
# and 3.10 no longer fuses
os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")

try:
    import triton  # noqa: F401
except ModuleNotFoundError:
    # from the repository's root transformers takes this folder for a package `kernels` of its own
    if __name__ == "hspec_kernels":
        raise ImportError(
            "hspec_kernels needs triton, which is not installed here: "
            "pip install 'hspec-lab[kernels]' on Linux"
        ) from None
