"""Families of models. Each is written small, embedded by sentence-transformers and by our engine, and compared.

python -m tritonembed_perf.families --only "bert_*" --out results
"""
