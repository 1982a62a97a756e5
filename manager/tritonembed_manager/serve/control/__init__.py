"""The parent process of `serve`: it launches, finds and judges the servers, and keeps the workers running."""
