"""Triton-language kernels for what stands between the matrix products of an encoder. Each has a reference in PyTorch."""
