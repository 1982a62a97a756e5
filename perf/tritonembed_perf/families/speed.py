"""Executors of models that vLLM lacks against sentence-transformers: texts per second in one process, in turn.

python -m tritonembed_perf.families.speed mpnet distilbert [--device cuda] [--shape 50x64] [--json FILE]
python -m tritonembed_perf.families.speed static --shape 50x1024 --rounds 9

Both tokenize the same texts. On a CPU both have float32 and every core; on a GPU both have bfloat16. The models have
the hub's shapes and random weights. Of `static`, a table of token vectors, our executor alone is measured, too.
"""

import argparse
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tritonembed_perf.options import output_file
from tritonembed_perf.reports import describe_script, write_report

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Vectors = npt.NDArray[np.float32]
    Encode = Callable[[], Vectors]

BASE = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "mpnet": ("MPNetModel", {**BASE, "model_type": "mpnet", "max_position_embeddings": 514, "pad_token_id": 1}),
    "distilbert": ("DistilBertModel", {"model_type": "distilbert", "dim": 768, "n_layers": 6, "n_heads": 12}),
    "albert": ("AlbertModel", {**BASE, "model_type": "albert", "embedding_size": 128, "num_hidden_layers": 6}),
    "electra": (
        "ElectraModel",
        {"model_type": "electra", "embedding_size": 128, "hidden_size": 256, "intermediate_size": 1024},
    ),
    "deberta": (
        "DebertaV2Model",
        {
            **{**BASE, "model_type": "deberta-v2", "relative_attention": True, "position_buckets": 256},
            **{"norm_rel_ebd": "layer_norm", "share_att_key": True, "pos_att_type": "p2c|c2p", "type_vocab_size": 0},
            **{"position_biased_input": False, "max_position_embeddings": 512},
        },
    ),
    "t5": ("T5EncoderModel", {"model_type": "t5", "d_model": 768, "d_ff": 3072, "num_layers": 12, "num_heads": 12}),
}
"""The base models of each family: all-mpnet-base-v2, distilbert, albert-base with 6 layers, electra-small,
deberta-v3-base, sentence-t5-base. The vocabulary is BERT's."""

STATIC, TABLE_WIDTH = "static", 256
"""The table has the shape of potion-base-8M: BERT's vocabulary x 256."""

ROUNDS = 5
BATCH_SIZES = {"cpu": (32,), "cuda": (32, 256)}
"""sentence-transformers' own default and, on a GPU, a size that fills it; the faster one counts."""


def main() -> None:
    """Print a row per model: the rates, their medians, and the least cosine."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "models", nargs="*", metavar="MODEL", help=f"{', '.join(MODELS)}, {STATIC}; by default all but it"
    )
    parser.add_argument("--device", choices=BATCH_SIZES, default="cpu")
    parser.add_argument("--shape", default="50x64", help="tokens x texts of one call")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--mixed", action="store_true", help="lengths from 2 up to the tokens of --shape")
    parser.add_argument("--json", type=output_file)
    options = parser.parse_args()
    tokens, count = map(int, options.shape.split("x"))
    environment = describe_script("speed")
    from tritonembed_engine.stub.process import prepare_process

    prepare_process("0" if options.device == "cuda" else None)
    rows = []
    for name in options.models or MODELS:
        with tempfile.TemporaryDirectory(prefix="speed-") as folder:
            write(name, Path(folder) / name)
            texts = texts_of(tokens, count, options.mixed)
            rows.append(measure(name, Path(folder) / name, texts, options.rounds, options.device))
    write_report(options.json, {**environment, "shape": options.shape, "mixed": options.mixed, "rows": rows})


def write(name: str, folder: Path) -> None:
    """A model of MODELS or STATIC, with BERT's tokenizer."""
    from tritonembed_perf.families import vocabularies
    from tritonembed_perf.families.sentence import OLD, Module, normalize, write_model, write_sentence_files
    from tritonembed_perf.families.static import write_table
    from tritonembed_perf.families.writing import ModelParts, random_state

    if name == STATIC:
        import torch

        table = torch.randn(vocabularies.BERT_VOCABULARY, TABLE_WIDTH, generator=torch.Generator().manual_seed(1))
        write_table(folder, state={"embedding.weight": table})
        write_sentence_files(folder, [Module("", f"{OLD}StaticEmbedding"), normalize()], max_length=None)
        return
    model_class, config = MODELS[name]
    config = {"vocab_size": vocabularies.BERT_VOCABULARY, **config, "architectures": [model_class]}
    tokenizer, settings = vocabularies.bert(512)
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    write_model(folder, ModelParts(config, random_state(model_class, config), tokenizer, settings), max_length=512)


def texts_of(tokens: int, count: int, mixed: bool) -> list[str]:
    """Texts of an exact number of tokens, special tokens included; if mixed, of 3 tokens and more."""
    from tokenizers import Tokenizer

    from tritonembed_manager.tune.loads import WordTexts
    from tritonembed_perf.models import BERT_TOKENIZER

    rng = random.Random(0)
    lengths = [rng.randint(3, tokens) for _ in range(count)] if mixed else [tokens] * count
    return WordTexts(Tokenizer.from_file(str(BERT_TOKENIZER))).of_lengths(lengths, rng)


def measure(name: str, folder: Path, texts: list[str], rounds: int, device: str) -> dict[str, Any]:
    """Texts per second of all sides, in turn."""
    import numpy as np

    theirs = make_theirs(folder, texts, device)
    sides = {"ours": make_ours(folder, texts, device)} | {str(size): theirs(size) for size in BATCH_SIZES[device]}
    first, *others = [run() for run in sides.values()]
    cosines = np.einsum("ij,ij->i", first, others[0])
    if name == STATIC:
        sides["executor"] = make_executor(folder, texts, device)
    rates: dict[str, list[float]] = {side: [] for side in sides}
    for _ in range(rounds):
        for side, run in sides.items():
            start = time.perf_counter()
            run()
            rates[side].append(len(texts) / (time.perf_counter() - start))
    medians = {side: statistics.median(rate) for side, rate in rates.items()}
    us, them = medians["ours"], max(medians[str(size)] for size in BATCH_SIZES[device])
    alone = f", our executor alone {medians['executor']:,.1f}" if name == STATIC else ""
    print(f"{name:12} {us:7.1f} texts/s, sentence-transformers {them:7.1f}: {us / them:.2f} x{alone}, ", end="")
    print(f"cosine {cosines.min():.6f} and more", flush=True)
    return {"model": name, **rates, "ratio": us / them, "least_cosine": float(cosines.min())}


def make_ours(folder: Path, texts: list[str], device: str) -> "Encode":
    """Our tokenizer and engine in this process."""
    from tritonembed_engine.engine import EmbeddingEngine
    from tritonembed_engine.factory import create_executor
    from tritonembed_engine.model.files import read_model_files
    from tritonembed_engine.parameters import EmbedParameters
    from tritonembed_engine.settings import ModelSettings
    from tritonembed_engine.tokenizing.text_tokenizer import TextTokenizer

    settings = ModelSettings.model_validate({"model": str(folder), "engine": {"reference": "off"}})
    files = read_model_files(str(folder))
    tokenizer = TextTokenizer(files)
    engine = EmbeddingEngine(create_executor(settings, files, device))

    def encode() -> "Vectors":
        [sentences] = tokenizer.encode_requests([([text.encode() for text in texts], EmbedParameters())])
        assert isinstance(sentences, list)
        return engine.submit(sentences, normalize=True).result()

    return encode


def make_executor(folder: Path, texts: list[str], device: str) -> "Callable[[], Any]":
    """Our executor alone: the ids are known."""
    from tritonembed_engine.factory import create_executor
    from tritonembed_engine.model.files import read_model_files
    from tritonembed_engine.parameters import EmbedParameters
    from tritonembed_engine.settings import ModelSettings
    from tritonembed_engine.token_ids import TokenIds
    from tritonembed_engine.tokenizing.text_tokenizer import TextTokenizer

    settings = ModelSettings.model_validate({"model": str(folder), "engine": {"reference": "off"}})
    files = read_model_files(str(folder))
    [ids] = TextTokenizer(files).encode_requests([([text.encode() for text in texts], EmbedParameters())])
    assert isinstance(ids, list)
    sentences, executor = TokenIds.join(ids), create_executor(settings, files, device)
    return lambda: executor.launch(sentences).result()


def make_theirs(folder: Path, texts: list[str], device: str) -> "Callable[[int], Encode]":
    """sentence-transformers in this process, for a number of texts per batch."""
    import torch
    from sentence_transformers import SentenceTransformer

    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    model = SentenceTransformer(str(folder), device=device, model_kwargs={"dtype": dtype})

    def with_batches_of(size: int) -> "Encode":
        def encode() -> "Vectors":
            vectors: Vectors = model.encode(texts, batch_size=size, show_progress_bar=False)
            return vectors

        return encode

    return with_batches_of


if __name__ == "__main__":
    main()
