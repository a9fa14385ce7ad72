"""Every kernel equals its plain-torch definition on every case."""

import pytest
import torch

from hspec_kernels.case import operations, rms_ratio, value_cases

ALL = [(operation, case) for operation in operations() for case in value_cases(operation)]
# the interpreter multiplies bf16 bit patterns; bf16 is tried on the GPU
DTYPES = [torch.float16, torch.bfloat16] if torch.cuda.is_available() else [torch.float16]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "case", [case for _, case in ALL], ids=[f"{operation}-{case.name}" for operation, case in ALL]
)
def test_a_kernel_equals_its_definition(case, dtype, device, generator):
    inputs = case.make(generator, device, dtype)
    copies = {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in inputs.items()}
    found, wanted = case.op(**inputs), case.reference(**copies)
    found, wanted = (x if isinstance(x, tuple) else (x,) for x in (found, wanted))
    assert len(found) == len(wanted)
    for out, ref in zip(found, wanted, strict=True):
        assert out.shape == ref.shape and out.dtype == ref.dtype
        if out.is_floating_point():
            assert rms_ratio(out, ref) <= case.tolerance
        else:
            assert torch.equal(out, ref)
