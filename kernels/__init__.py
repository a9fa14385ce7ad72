"""Triton kernels, one operation a file; tensors in, tensors out; imported as `hspec_kernels`."""
