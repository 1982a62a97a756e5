"""The parent process of `serve`: it runs the servers, their health checks and the workers."""
