"""A model of the XLM-R kind may come with sentencepiece's own file alone, as older ones on the hub do."""

import io
import random
import shutil
from pathlib import Path

import sentencepiece
from tests.models import ModelShelf

from tritonembed_engine.model.files import read_model_files
from tritonembed_engine.tokenizer_loading import load_tokenizer

WORDS = ("violin", "plays", "a", "slow", "melody", "straße", "поезд", "駅", "late", "station", "café", "42")
TEXTS = ("a violin plays", "поезд late, 駅!", "unknown ☃ signs")
FAIRSEQ_OFFSET = 1
"""XLM-R's ids are sentencepiece's and one, behind its own <s>, <pad>, </s>, <unk>."""


def train(folder: Path) -> sentencepiece.SentencePieceProcessor:
    """Write `sentencepiece.bpe.model`; what it says of a text by itself."""
    chance, written = random.Random(0), io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([" ".join(chance.choices(WORDS, k=8)) for _ in range(300)]),
        model_writer=written,
        vocab_size=200,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    (folder / "sentencepiece.bpe.model").write_bytes(written.getvalue())
    return sentencepiece.SentencePieceProcessor(model_proto=written.getvalue())


def test_a_folder_with_sentencepieces_file_alone_loads_and_gives_the_same_ids(
    shelf: ModelShelf, tmp_path: Path
) -> None:
    ignored = shutil.ignore_patterns("tokenizer.json", "*.safetensors")
    folder = shutil.copytree(shelf("xlm-roberta"), tmp_path / "model", ignore=ignored)
    alone = train(folder)
    tokenizer = load_tokenizer(read_model_files(str(folder)))
    start, end, unknown = (tokenizer.token_to_id(token) for token in ("<s>", "</s>", "<unk>"))
    for text in TEXTS:
        pieces = [piece + FAIRSEQ_OFFSET if piece else unknown for piece in alone.encode(text)]
        assert tokenizer.encode(text).ids == [start, *pieces, end]
