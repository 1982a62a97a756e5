"""Vectors that are known to be right, from transformers in float32. Executors are compared with them at load."""
