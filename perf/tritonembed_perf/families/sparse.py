"""SPLADE: a masked language model whose logits are weights of the vocabulary's tokens."""

from functools import partial
from pathlib import Path
from typing import Any

from tritonembed_perf.families.bert import bert
from tritonembed_perf.families.encoders import distilbert_model
from tritonembed_perf.families.layouts import with_head
from tritonembed_perf.families.modernbert import THETAS, modernbert
from tritonembed_perf.families.registry import case
from tritonembed_perf.families.roberta import roberta
from tritonembed_perf.families.sentence import Module, transformer, write_sentence_files
from tritonembed_perf.families.writing import Model, write_json

FAMILY = "SPLADE"
SPARSE = "sparse"
OLD = "sentence_transformers.sparse_encoder.models."
NEW = "sentence_transformers.sparse_encoder.modules."


def write_splade(folder: Path, model: Model, *, new: bool = False, **pooling: Any) -> None:
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


@case(FAMILY, output=SPARSE, must_refuse=True)
def splade_without_head(folder: Path) -> None:
    """The weights of the head are missing."""
    model = bert(architectures=["BertForMaskedLM"])
    model.prefix("bert.")
    write_splade(folder, model)
