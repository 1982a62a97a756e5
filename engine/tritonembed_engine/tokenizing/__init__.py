"""Texts to token ids, by the model's own tokenizer. Imports no torch."""
