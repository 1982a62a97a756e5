"""Triton-language kernels for what stands between an encoder's matrix products. Each has a reference in PyTorch."""
