"""Measurements of one thing each, run with `python -m tritonembed_perf.scripts.NAME`."""
