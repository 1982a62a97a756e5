"""SPLADE: a masked language model whose logits are weights of the vocabulary's tokens."""

import json
from functools import partial
from pathlib import Path
from typing import Any

from tritonembed_perf.families.bert import bert
from tritonembed_perf.families.encoders import distilbert_model
from tritonembed_perf.families.layouts import with_head
from tritonembed_perf.families.modernbert import THETAS, modernbert
from tritonembed_perf.families.registry import case
from tritonembed_perf.families.roberta import roberta
from tritonembed_perf.families.sentence import MAX_LENGTH, Module, transformer, write_sentence_files
from tritonembed_perf.families.writing import ModelParts, write_json, write_weights

FAMILY = "SPLADE"
SPARSE = "sparse"
OLD = "sentence_transformers.sparse_encoder.models."
NEW = "sentence_transformers.sparse_encoder.modules."


def write_splade(folder: Path, model: ModelParts, *, new: bool = False, **pooling: Any) -> None:
    """A masked language model and SpladePooling. new: as sentence-transformers 6 saves it. pooling: its settings."""
    model.write(folder)
    config = {"pooling_strategy": "max", "activation_function": "relu", "word_embedding_dimension": None, **pooling}
    package = f"{NEW}splade_pooling." if new else OLD
    kind = f"{NEW}mlm_transformer.MLMTransformer" if new else f"{OLD}MLMTransformer"
    sparse = Module("SpladePooling", f"{package}SpladePooling", partial(_write_config, config=config))
    settings = {
        "transformer_task": "fill-mask",
        "modality_config": {"text": {"method": "forward", "method_output_name": "logits"}},
        "module_output_name": "token_embeddings",
    }
    config = {"model_type": "SparseEncoder", "similarity_fn_name": "dot"}
    write_sentence_files(folder, [transformer(kind), sparse], settings=settings if new else None, config=config)


def _write_config(folder: Path, config: dict[str, Any]) -> None:
    write_json(folder / "config.json", config)


@case(FAMILY, output=SPARSE)
def splade(folder: Path) -> None:
    """naver's SPLADE: BERT, as sentence-transformers 5 saved it."""
    write_splade(folder, with_head("BertForMaskedLM"))


@case(FAMILY, output=SPARSE)
def splade_st6(folder: Path) -> None:
    write_splade(folder, with_head("BertForMaskedLM"), new=True)


@case(FAMILY, output=SPARSE)
def splade_distilbert(folder: Path) -> None:
    """opensearch-neural-sparse-encoding-v2-distill."""
    write_splade(folder, distilbert_model("DistilBertForMaskedLM"))


@case(FAMILY, output=SPARSE)
def splade_log1p(folder: Path) -> None:
    """Two logarithms, as opensearch-neural-sparse-encoding-doc-v3 has them."""
    write_splade(folder, with_head("BertForMaskedLM"), activation_function="log1p_relu")


@case(FAMILY, output=SPARSE)
def splade_sum(folder: Path) -> None:
    """The first SPLADE: the sum over a text's tokens."""
    write_splade(folder, with_head("BertForMaskedLM"), pooling_strategy="sum")


@case(FAMILY, output=SPARSE)
def splade_modernbert(folder: Path) -> None:
    write_splade(folder, modernbert("ModernBertForMaskedLM", **THETAS))


@case(FAMILY, output=SPARSE)
def splade_roberta(folder: Path) -> None:
    write_splade(folder, roberta("RobertaForMaskedLM"))


def write_router(folder: Path, model: ModelParts, default: str = "document", own_folder: bool = False) -> None:
    """The layout of opensearch-neural-sparse-encoding-doc: a table for queries, SPLADE for documents.

    own_folder: the masked language model is in a folder of its own, as sentence-transformers saves it.
    """
    import torch

    write_splade(folder, model, activation_function="log1p_relu")
    (folder / "1_SpladePooling").rename(folder / "document_1_SpladePooling")
    query, root = folder / "query_0_SparseStaticEmbedding", "document_0_MLMTransformer" if own_folder else ""
    query.mkdir()
    if own_folder:
        (folder / root).mkdir()
        for name in ("config.json", "model.safetensors", "sentence_bert_config.json", "tokenizer_config.json"):
            (folder / name).rename(folder / root / name)
        (folder / "tokenizer.json").rename(folder / root / "tokenizer.json")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (query / name).write_bytes((folder / root / name).read_bytes())
    settings = json.loads((query / "tokenizer_config.json").read_text())
    # Without the two special tokens.
    write_json(query / "tokenizer_config.json", {**settings, "model_max_length": MAX_LENGTH - 2})
    weights = torch.rand(model.config["vocab_size"], generator=torch.Generator().manual_seed(9))
    # Of trained tables, a part is zero.
    write_weights(query, {"weight": weights * 8 * (weights > 0.2)})
    write_json(query / "config.json", {"frozen": True})
    document = [root, "document_1_SpladePooling"]
    types = {
        query.name: f"{OLD}SparseStaticEmbedding",
        root: f"{OLD}MLMTransformer",
        document[1]: f"{OLD}SpladePooling",
    }
    parameters = {"default_route": default, "allow_empty_key": True}
    routes = {"types": types, "structure": {"query": [query.name], "document": document}, "parameters": parameters}
    write_json(folder / "router_config.json", routes)
    listed = [{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Router"}]
    write_json(folder / "modules.json", listed)


@case(FAMILY, output=SPARSE)
def splade_router(folder: Path) -> None:
    """opensearch-neural-sparse-encoding-doc-v3-distill: queries need no forward pass."""
    write_router(folder, distilbert_model("DistilBertForMaskedLM"))


@case(FAMILY, output=SPARSE)
def splade_router_of_queries(folder: Path) -> None:
    """A text without an input type is a query."""
    write_router(folder, with_head("BertForMaskedLM"), "query", own_folder=True)


@case(FAMILY, output=SPARSE, must_refuse=True)
def splade_without_head(folder: Path) -> None:
    """The weights of the head are missing."""
    model = bert(architectures=["BertForMaskedLM"])
    model.prefix("bert.")
    write_splade(folder, model)
