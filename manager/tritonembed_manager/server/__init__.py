"""One tritonserver: its settings, its model repository, its processes."""
