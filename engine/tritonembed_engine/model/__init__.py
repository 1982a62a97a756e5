"""A model's folder: its files, read as sentence-transformers reads them."""
