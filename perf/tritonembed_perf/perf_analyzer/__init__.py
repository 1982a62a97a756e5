"""`tritonembed-bench perf-analyzer`: NVIDIA's load generator on inputs and scenarios of ours."""
