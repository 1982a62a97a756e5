"""Programs that run in a peer's own environment, by their paths: they import nothing of this project."""
