"""Triton-language kernels for the steps between an encoder's matrix products. Each has a reference in PyTorch."""
