"""Static embeddings: a table with a row per token, and no transformer; in the layouts of two libraries."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tritonembed_perf.families import vocabularies
from tritonembed_perf.families.registry import case
from tritonembed_perf.families.sentence import OLD, Module, dense, normalize, write_sentence_files
from tritonembed_perf.families.writing import write_json, write_tokenizer, write_weights

if TYPE_CHECKING:
    import torch

STATIC = "Static embeddings"
WIDTH = 48
NEW = "sentence_transformers.sentence_transformer.modules.static_embedding."
MODEL2VEC = {
    "model_type": "model2vec",
    "architectures": ["StaticModel"],
    "tokenizer_name": "baai/bge-base-en-v1.5",
    "apply_pca": 256,
    "hidden_dim": WIDTH,
    "seq_length": 1_000_000,
}


def _randn(*shape: int, seed: int = 1) -> "torch.Tensor":
    import torch

    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def write_table(
    folder: Path,
    vocabulary: vocabularies.Vocabulary | None = None,
    name: str = "embedding.weight",
    state: Mapping[str, Any] | None = None,
) -> None:
    """A table of random rows, and its tokenizer. name: of the table. state: the tensors instead of a table."""
    tokenizer, settings = vocabulary or vocabularies.bert()
    folder.mkdir(parents=True, exist_ok=True)
    write_tokenizer(folder, tokenizer, settings)
    write_weights(folder, dict(state or {name: _randn(tokenizer.get_vocab_size(), WIDTH)}))


def _write(folder: Path, *after: Module, place: str = "", package: str = OLD, **sentence: Any) -> None:
    first = Module(place, f"{package}StaticEmbedding")
    write_sentence_files(folder, [first, *after], max_length=None, **sentence)


@case(STATIC)
def static_st(folder: Path) -> None:
    """StaticEmbedding in a folder of its own, as static-retrieval-mrl-en has it."""
    write_table(folder / "0_StaticEmbedding")
    _write(folder, normalize(), place="StaticEmbedding", prompts={"query": "find: ", "document": ""})


@case(STATIC)
def static_new_name(folder: Path) -> None:
    """As sentence-transformers 6 saves it; no Normalize."""
    write_table(folder)
    _write(folder, package=NEW)


@case(STATIC)
def static_truncates(folder: Path) -> None:
    """tokenizer.json truncates on the left."""
    tokenizer, settings = vocabularies.bert()
    tokenizer.enable_truncation(16, direction="left")
    write_table(folder, (tokenizer, settings))
    _write(folder, normalize())


@case(STATIC)
def static_dense(folder: Path) -> None:
    """A Dense module behind the table, and `truncate_dim`."""
    write_table(folder)
    _write(folder, dense(WIDTH, 64), normalize(), config={"truncate_dim": 32})


@case(STATIC)
def static_fp16(folder: Path) -> None:
    write_table(folder, state={"embedding.weight": _randn(vocabularies.BERT_VOCABULARY, WIDTH).half()})
    _write(folder, normalize())


@case(STATIC)
def static_bpe(folder: Path) -> None:
    """Byte-level BPE, whose special tokens are left out."""
    write_table(folder, vocabularies.roberta())
    _write(folder)


@case(STATIC)
def model2vec(folder: Path) -> None:
    """potion-base: model2vec's own layout."""
    write_table(folder, name="embeddings")
    write_json(folder / "config.json", {**MODEL2VEC, "normalize": True})
    _write(folder, normalize())
    edit_module_paths(folder)


@case(STATIC)
def model2vec_quantized(folder: Path) -> None:
    """A vocabulary that shares rows: `mapping` and `weights`."""
    import torch

    rows = vocabularies.BERT_VOCABULARY
    mapping = torch.randint(0, 500, (rows,), generator=torch.Generator().manual_seed(2))
    state = {"embeddings": _randn(500, WIDTH), "mapping": mapping, "weights": _randn(rows, seed=3).exp()}
    write_table(folder, state=state)
    write_json(folder / "config.json", {**MODEL2VEC, "vocabulary_quantization": 500, "normalize": True})
    _write(folder, normalize())


@case(STATIC, reference=model2vec)
def model2vec_nomodules(folder: Path) -> None:
    """As model2vec saved it before it wrote modules.json."""
    model2vec(folder)
    for name in ("modules.json", "config_sentence_transformers.json"):
        (folder / name).unlink()


@case(STATIC, must_refuse=True)
def static_short_table(folder: Path) -> None:
    """Fewer rows than the tokenizer has tokens."""
    write_table(folder, state={"embedding.weight": _randn(1000, WIDTH)})
    _write(folder)


@case(STATIC, must_refuse=True)
def static_no_weights(folder: Path) -> None:
    write_table(folder)
    (folder / "model.safetensors").unlink()
    _write(folder)


@case(STATIC, must_refuse=True)
def static_half_downloaded(folder: Path) -> None:
    """Only half of the table's file."""
    write_table(folder)
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    _write(folder)


def edit_module_paths(folder: Path) -> None:
    """model2vec names the table's folder "." instead of ""."""
    import json

    listed = json.loads((folder / "modules.json").read_text("utf-8"))
    listed[0]["path"] = "."
    write_json(folder / "modules.json", listed)
