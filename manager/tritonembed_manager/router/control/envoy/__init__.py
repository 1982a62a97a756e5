"""The data plane of `--data-plane envoy`: its configuration as xDS files, its process, and its figures."""
