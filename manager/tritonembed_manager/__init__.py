"""Runs Triton servers that embed text: `tritonembed-manager`."""
