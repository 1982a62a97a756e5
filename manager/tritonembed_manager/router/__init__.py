"""`serve`: one endpoint over many Triton servers."""
