"""A campaign against a real manager: good callers, attackers and kills at the same time, and a report.

python -m tritonembed_perf.chaos --minutes 1 --seed 7 --out report.json
"""
