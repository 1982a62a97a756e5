"""A model's folder: what its files say, and what sentence-transformers would make of them."""
