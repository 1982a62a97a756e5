"""Multi-vector models (ColBERT): the layouts of Stanford's code, PyLate and sentence-transformers 6."""

import shutil
from functools import partial
from pathlib import Path
from typing import Any

from tritonembed_perf.families import jina_naive
from tritonembed_perf.families.bert import WIDTH, bert
from tritonembed_perf.families.gte import jina_colbert_v2
from tritonembed_perf.families.jina_v2 import jina
from tritonembed_perf.families.modernbert import THETAS, modernbert
from tritonembed_perf.families.registry import case
from tritonembed_perf.families.roberta import xlm_roberta
from tritonembed_perf.families.sentence import Module, dense, transformer, write_sentence_files
from tritonembed_perf.families.writing import ModelParts, edit_json, write_json

FAMILY = "ColBERT"
MULTI_VECTOR = "multi_vector"
DIMENSIONS = 32
IDENTITY = "torch.nn.modules.linear.Identity"
PYLATE = "pylate.models.Dense.Dense"
NEW = "sentence_transformers.multi_vector_encoder.modules.multi_vector_mask.MultiVectorMask"
NORMALIZE = "sentence_transformers.base.modules.normalize.Normalize"
TEXT = {
    "transformer_task": "feature-extraction",
    "modality_config": {"text": {"method": "forward", "method_output_name": "last_hidden_state"}},
    "module_output_name": "token_embeddings",
}


def write_stanford(folder: Path, model: ModelParts, prefix: str = "bert.", **metadata: Any) -> None:
    """config.json names HF_ColBERT; the projection is among the weights. metadata: of artifact.metadata."""
    import torch

    model.config["architectures"] = ["HF_ColBERT"]
    model.prefix(prefix)
    generator = torch.Generator().manual_seed(7)
    model.state["linear.weight"] = torch.randn(DIMENSIONS, WIDTH, generator=generator) * 2 / WIDTH**0.5
    model.write(folder)
    write_json(folder / "artifact.metadata", {"dim": DIMENSIONS, "similarity": "cosine", **metadata})


def write_pylate(folder: Path, model: ModelParts, *projections: Module, **config: Any) -> None:
    """PyLate's modules and the settings of config_sentence_transformers.json."""
    model.write(folder)
    linear = projections or [dense(WIDTH, DIMENSIONS, IDENTITY, bias=False, type=PYLATE)]
    config = {"similarity_fn_name": "MaxSim", "query_prefix": "[Q] ", "document_prefix": "[D] ", **config}
    write_sentence_files(folder, [transformer(), *linear], config=config)


def write_new(folder: Path, model: ModelParts, mask: dict[str, Any], **settings: Any) -> None:
    """As sentence-transformers 6 saves it. mask: of MultiVectorMask. settings: of sentence_bert_config.json."""
    model.write(folder)
    kind = "sentence_transformers.base.modules.dense.Dense"
    names: dict[str, Any] = {"module_input_name": "token_embeddings", "module_output_name": "token_embeddings"}
    modules = [
        transformer("sentence_transformers.base.modules.transformer.Transformer"),
        dense(WIDTH, DIMENSIONS, IDENTITY, bias=False, type=kind, **names),
        Module("MultiVectorMask", NEW, partial(_write_config, config=mask)),
        Module("Normalize", NORMALIZE, partial(_write_config, config=names)),
    ]
    config = {"model_type": "MultiVectorEncoder", "similarity_fn_name": "maxsim"}
    prompts = {"query": "query: ", "document": "document: "}
    write_sentence_files(folder, modules, settings={**TEXT, **settings}, config=config, prompts=prompts)


def _write_config(folder: Path, config: dict[str, Any]) -> None:
    write_json(folder / "config.json", config)


@case(FAMILY, output=MULTI_VECTOR)
def colbert_hf(folder: Path) -> None:
    """colbertv2.0: [unused0] and [unused1], expansion that is not attended to."""
    write_stanford(folder, bert(), query_maxlen=32, doc_maxlen=48)


@case(FAMILY, output=MULTI_VECTOR)
def colbert_hf_attends(folder: Path) -> None:
    """Expansion that is attended to, punctuation that counts."""
    write_stanford(folder, bert(), query_maxlen=24, attend_to_mask_tokens=True, mask_punctuation=False)


@case(FAMILY, output=MULTI_VECTOR)
def colbert_hf_xlmr(folder: Path) -> None:
    """XLM-R with markers of its own vocabulary, as jina-colbert-v2 has them."""
    model = with_markers(xlm_roberta())
    write_stanford(folder, model, "roberta.", query_maxlen=32, attend_to_mask_tokens=True, **MARKERS)


MARKERS = {"query_token_id": "[QueryMarker]", "doc_token_id": "[DocumentMarker]"}


def with_markers(model: ModelParts) -> ModelParts:
    """The model with jina's markers in its vocabulary."""
    import torch

    model.tokenizer.add_special_tokens(list(MARKERS.values()))
    model.config["vocab_size"] = model.tokenizer.get_vocab_size()
    table = model.state["embeddings.word_embeddings.weight"]
    more = torch.randn(model.config["vocab_size"] - len(table), WIDTH, generator=torch.Generator().manual_seed(8))
    model.state["embeddings.word_embeddings.weight"] = torch.cat([table, more])
    return model


def _jina_v1() -> ModelParts:
    """jina-colbert-v1: JinaBERT, which only the names of the hub's code show."""
    return jina(model_max_length=64)


def _naive_jina_v1(folder: Path) -> None:
    """The same weights with code in the folder."""
    write_stanford(folder, _jina_v1(), "", **JINA_SETTINGS)
    shutil.copy(jina_naive.__file__, folder / "jina_naive.py")
    code = {"AutoConfig": "jina_naive.NaiveConfig", "AutoModel": "jina_naive.NaiveJinaBert"}
    edit_json(folder / "config.json", model_type="naive-jina-bert", auto_map=code)


JINA_SETTINGS: dict[str, Any] = {"query_maxlen": 32, "doc_maxlen": 48}


@case(FAMILY, output=MULTI_VECTOR, reference=_naive_jina_v1, reference_code=True)
def colbert_jina_v1(folder: Path) -> None:
    write_stanford(folder, _jina_v1(), "bert.", **JINA_SETTINGS)


def _jina_v2(folder: Path, *, native: bool) -> None:
    model = with_markers(jina_colbert_v2(native=native))
    write_stanford(folder, model, "" if native else "roberta.", query_maxlen=32, doc_maxlen=48, **MARKERS)


@case(FAMILY, output=MULTI_VECTOR, reference=partial(_jina_v2, native=True))
def colbert_jina_v2(folder: Path) -> None:
    """jina-colbert-v2: XLM-R with rotary positions, which is the hub's code. The reference is transformers' class."""
    _jina_v2(folder, native=False)


@case(FAMILY, output=MULTI_VECTOR)
def colbert_pylate(folder: Path) -> None:
    """PyLate 1: no model_type, punctuation is left out."""
    write_pylate(folder, bert(), query_length=32, document_length=48)


@case(FAMILY, output=MULTI_VECTOR)
def colbert_pylate3(folder: Path) -> None:
    """PyLate 3: model_type ColBERT, its own words that are left out."""
    write_pylate(folder, bert(), model_type="ColBERT", query_length=24, skiplist_words=[",", "the"])


@case(FAMILY, output=MULTI_VECTOR)
def colbert_pylate_attends(folder: Path) -> None:
    write_pylate(folder, bert(), query_length=32, attend_to_expansion_tokens=True)


@case(FAMILY, output=MULTI_VECTOR)
def colbert_modernbert(folder: Path) -> None:
    """GTE-ModernColBERT: ModernBERT, no expansion."""
    write_pylate(folder, modernbert(**THETAS), do_query_expansion=False, query_length=32, document_length=56)


@case(FAMILY, output=MULTI_VECTOR)
def colbert_modernbert_expands(folder: Path) -> None:
    write_pylate(folder, modernbert(**THETAS), query_length=48)


@case(FAMILY, output=MULTI_VECTOR)
def colbert_two_dense(folder: Path) -> None:
    """mxbai-edge-colbert: several projections, with an activation and a residual."""
    first = dense(WIDTH, 96, "torch.nn.modules.activation.GELU", bias=False, type=PYLATE, seed=5)
    second = dense(96, DIMENSIONS, IDENTITY, bias=False, type=PYLATE, use_residual=True, seed=6)
    write_pylate(folder, bert(), first, second, model_type="ColBERT", do_query_expansion=False)


@case(FAMILY, output=MULTI_VECTOR)
def colbert_st6(folder: Path) -> None:
    expansion = {"strategy": "fixed", "attend": False, "token": None, "length": 32}
    write_new(folder, bert(), {"skiplist_words": [".", ","]}, query_expansion=expansion)


@case(FAMILY, output=MULTI_VECTOR)
def colbert_st6_min(folder: Path) -> None:
    """Expansion as a minimum, another token that expands, words that are left out of queries, too."""
    expansion = {"strategy": "min", "attend": True, "token": "[SEP]", "length": 16}
    mask = {"skiplist_words": ["the", "?"], "skiplist_tasks": ["query", "document"]}
    write_new(folder, bert(), mask, query_expansion=expansion, query_length=40, document_length=32)


@case(FAMILY, output=MULTI_VECTOR)
def colbert_st6_plain(folder: Path) -> None:
    """No expansion, nothing that is left out."""
    write_new(folder, bert(), {"skiplist_words": []})


@case(FAMILY, output=MULTI_VECTOR, must_refuse=True)
def colbert_hf_without_projection(folder: Path) -> None:
    model = bert(architectures=["HF_ColBERT"])
    model.prefix("bert.")
    model.write(folder)
