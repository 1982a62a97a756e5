"""Runs a load generator, and gives the number of requests that it counts as answered: `aiperf` or `genai-perf`."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from exchange import TEXTS, URL, give

NAME = sys.argv[1]
"""The program of this environment."""
COMMON = {"--model": "embedding", "--endpoint-type": "embeddings", "--url": URL, "--request-count": "6"}
OWN = {
    "aiperf": {"--custom-dataset-type": "single_turn", "--ui": "none", "--workers-max": "1"},
    "genai-perf": {},
}
FOLDER = {"aiperf": "--output-artifact-dir", "genai-perf": "--artifact-dir"}
EXPORT = {"aiperf": "profile_export_aiperf.json", "genai-perf": "profile_export_genai_perf.json"}

with tempfile.TemporaryDirectory() as folder:
    texts = Path(folder) / "texts.jsonl"
    texts.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    # A tokenizer of the hub is the default.
    files = {"--input-file": str(texts), "--tokenizer": os.environ["CLIENT_TOKENIZER"], FOLDER[NAME]: f"{folder}/out"}
    arguments = [word for pair in {**COMMON, **OWN[NAME], **files}.items() for word in pair]
    program = Path(sys.executable).parent / NAME
    subprocess.run([program, "profile", *arguments], check=True, stdout=subprocess.DEVNULL)
    [export] = Path(folder, "out").rglob(EXPORT[NAME])
    found = json.loads(export.read_text())
    assert not found.get("error_summary")
    give(requests=[[found["request_count"]["avg"]]])
