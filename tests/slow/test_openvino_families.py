"""Every family that the openvino executor converts gives sentence-transformers' vectors, whatever is in a batch."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer

from tritonembed_engine.executors import openvino_conversion, openvino_executor, openvino_graphs
from tritonembed_engine.model.files import read_model_files
from tritonembed_engine.model.folder import read_object
from tritonembed_engine.parameters import EmbedParameters
from tritonembed_engine.reference.cases import Case
from tritonembed_engine.reference.oracle import Oracle
from tritonembed_engine.settings import ModelSettings
from tritonembed_engine.token_ids import TokenIds
from tritonembed_engine.tokenizing.text_tokenizer import TextTokenizer
from tritonembed_perf.families.registry import load_cases

TEXTS = ["", "one", "naïve 😀 中文", *("railway company " * n + "ends" for n in range(1, 30)), "railway " * 600]
FAMILIES = (
    *("mpnet", "distilbert_dot", "albert", "electra", "deberta_v3", "deberta_v2_conv", "deberta_v1", "sentence_t5"),
    *("megatron_bert", "roformer", "xlmr_xl", "roberta_prelayernorm", "nomic_v15", "gte_multilingual", "gte_en"),
    *("arctic_m_v2", "eurobert"),
)


def in_this_process(module: str, given: Mapping[str, Any], what: str) -> None:
    """Instead of `run_module`: a process would import torch again."""
    settings = ModelSettings.model_validate(given["settings"])
    openvino_conversion.convert(settings, read_model_files(settings.model), Path(given["folder"]))


@pytest.mark.parametrize("name", FAMILIES)
def test_vectors_are_sentence_transformers(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(openvino_graphs, "run_module", in_this_process)
    folder = tmp_path / name
    folder.mkdir()
    load_cases()[name].write(folder)
    files = read_model_files(str(folder))
    executor = openvino_executor.load(ModelSettings(model=str(folder)), files, "cpu", 4096, 1024, None)
    [ids] = TextTokenizer(files).encode_requests([([text.encode() for text in TEXTS], EmbedParameters())])
    assert isinstance(ids, list)
    sentences = TokenIds.join(ids)
    together = executor.launch(sentences).result()
    alone = np.concatenate([executor.launch(part).result() for part in sentences.split([1] * len(sentences))])
    together, alone = (found / np.linalg.norm(found, axis=1, keepdims=True) for found in (together, alone))
    np.testing.assert_allclose(together, alone, atol=1e-5)
    if read_object(folder / "config.json").get("auto_map"):
        # sentence-transformers would run the hub's code. Transformers' own class is the reference at load, too.
        expected = Oracle(str(folder), None, files).embed([Case("", one.tobytes()) for one in sentences])
        expected /= np.linalg.norm(expected, axis=1, keepdims=True)
        assert np.einsum("ij,ij->i", together, expected).min() >= 0.99999
        return
    theirs = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    expected = theirs.encode(TEXTS, batch_size=1, show_progress_bar=False, normalize_embeddings=True)
    assert np.einsum("ij,ij->i", together, expected).min() >= 0.99999
