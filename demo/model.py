"""Writes the demo's model: a small BERT without training, made so that texts which share words are near each other.

    python demo/model.py FOLDER

Word vectors are random, which keeps different words apart; positions, token types, punctuation and the most frequent
words are zero, so that the mean over a sentence is about its rarer words. The same bytes on every machine.
"""

import shutil
import sys
from pathlib import Path

from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from tritonembed_perf.models import write_bert

FREQUENT = 250
"""BERT's vocabulary is ordered by frequency: the words after the single characters are the, of, and, in, …"""


def write_demo_model(folder: Path) -> None:
    """A BERT of 3 layers x 256 with mean pooling and normalisation."""
    write_bert(folder, layers=3, hidden=256, heads=8, intermediate=512, max_length=256, pooling="mean", seed=7)
    weights_file = folder / "model.safetensors"
    weights = load_file(weights_file)
    words = weights["embeddings.word_embeddings.weight"]
    vocabulary = Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab()
    words[: vocabulary["the"] + FREQUENT] = 0
    for name in ("embeddings.position_embeddings.weight", "embeddings.token_type_embeddings.weight"):
        weights[name].zero_()
    save_file(weights, weights_file, metadata={"format": "pt"})


def main(folder: Path) -> None:
    """Write it, whole or not at all: whoever finds it takes it as it is."""
    unfinished = folder.with_name(f"{folder.name}.unfinished")
    for old in (unfinished, folder):
        shutil.rmtree(old, ignore_errors=True)
    write_demo_model(unfinished)
    unfinished.rename(folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    print("wrote the demo model: random weights, no training")
