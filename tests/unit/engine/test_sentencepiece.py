"""A model of the XLM-R kind may have only sentencepiece's own file, like older models on the hub."""

import io
import random
import shutil
from pathlib import Path

import sentencepiece
from tests.models import ModelShelf

from tritonembed_engine.model.files import read_model_files
from tritonembed_engine.tokenizing.loading import load_tokenizer

WORDS = ("violin", "plays", "a", "slow", "melody", "straße", "поезд", "駅", "late", "station", "café", "42")
TEXTS = ("a violin plays", "поезд late, 駅!", "unknown ☃ signs")
FAIRSEQ_OFFSET = 1
"""XLM-R puts <s>, <pad>, </s> and <unk> first, so its ids are sentencepiece's plus one."""


def train(folder: Path) -> sentencepiece.SentencePieceProcessor:
    """Writes `sentencepiece.bpe.model`. Returns sentencepiece's own tokenizer of it."""
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
