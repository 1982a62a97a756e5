"""Vectors that are known to be right, from transformers in float32; what serves is held against them at load."""
