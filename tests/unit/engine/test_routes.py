"""Models whose queries need no forward pass: the weights are sentence-transformers', and other Routers are refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tritonembed_engine.errors import ModelError
from tritonembed_engine.model.files import read_model_files
from tritonembed_engine.model.routes import read_weights
from tritonembed_engine.model.space import embedding_space
from tritonembed_engine.parameters import EmbedParameters
from tritonembed_engine.settings import ModelSettings
from tritonembed_engine.token_ids import TokenIds
from tritonembed_engine.tokenizing.text_tokenizer import TextTokenizer
from tritonembed_engine.tokenizing.token_choice import TokenChoice
from tritonembed_perf.families.registry import load_cases

QUERIES = ["what is the river?", "the the the", "", "naïve café 中文 😀", "[SEP] engine [CLS]", "river engine " * 30]
QUERY = "query_0_SparseStaticEmbedding"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    load_cases()["splade_router"].write(tmp_path)
    return tmp_path


@pytest.mark.parametrize(("name", "kind"), [("splade_router", "query"), ("splade_router_of_queries", None)])
def test_the_weights_of_queries_are_sentence_transformers(tmp_path: Path, name: str, kind: str | None) -> None:
    from sentence_transformers import SparseEncoder

    load_cases()[name].write(tmp_path)
    files = read_model_files(str(tmp_path))
    parameters, choice = EmbedParameters(input_type=kind), TokenChoice(files)
    answer = TextTokenizer(files).encode_requests([([text.encode() for text in QUERIES], parameters)])[0]
    assert isinstance(answer, list)
    found = choice.without_forward(parameters, TokenIds.join(answer))
    assert found is not None
    expected = SparseEncoder(str(tmp_path), device="cpu").encode_query(QUERIES, convert_to_sparse_tensor=False).numpy()
    for (start, stop), row in zip(found["sparse"].bounds(), expected, strict=True):
        weights = found["sparse"].rows[start:stop]
        assert weights["id"].tolist() == np.flatnonzero(row).tolist()
        np.testing.assert_array_equal(weights["weight"], row[weights["id"]])


def test_documents_need_a_forward_pass(folder: Path) -> None:
    choice = TokenChoice(read_model_files(str(folder)))
    sentences = TokenIds.join([np.array([2, 7, 3], "<i4").tobytes()])
    for kind in ("passage", None):
        assert choice.without_forward(EmbedParameters(input_type=kind), sentences) is None


def test_the_space_depends_on_the_weights_of_queries(folder: Path) -> None:
    settings = ModelSettings.model_validate({"model": str(folder)})
    before = embedding_space(settings, read_model_files(str(folder)), "float32")
    save_file({"weight": torch.ones(50)}, folder / QUERY / "model.safetensors")
    assert embedding_space(settings, read_model_files(str(folder)), "float32") != before


def edit(file: str, change: Callable[[Any], None]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        contents = json.loads((folder / file).read_text())
        change(contents)
        (folder / file).write_text(json.dumps(contents))

    return apply


def rename_route(config: dict[str, Any]) -> None:
    config["structure"]["title"] = config["structure"].pop("query")


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (edit("router_config.json", rename_route), "only if its routes are document, and query with"),
        (edit("router_config.json", lambda config: config["types"].clear()), "does not name the modules"),
        (edit("router_config.json", lambda config: config["parameters"].update(default_route="a")), "default_route"),
        (
            edit(
                "router_config.json",
                lambda config: config["parameters"].update(route_mappings={"(None, None)": "query"}),
            ),
            "route_mappings",
        ),
        (
            edit(f"{QUERY}/tokenizer.json", lambda config: config["model"]["vocab"].popitem()),
            "the tokenizer of query_0",
        ),
        (edit(f"{QUERY}/tokenizer_config.json", lambda config: config.update(do_lower_case=False)), "the tokenizer of"),
        (edit("sentence_bert_config.json", lambda config: config.update(do_lower_case=True)), "do_lower_case"),
    ],
)
def test_routes_that_can_not_be_followed_are_refused(
    folder: Path, change: Callable[[Path], None], problem: str
) -> None:
    change(folder)
    with pytest.raises(ModelError, match=problem):
        read_model_files(str(folder))


@pytest.mark.parametrize(
    ("state", "problem"),
    [
        ({"weight": torch.ones(9)}, r"shape \[9\], not \[8\]"),
        ({"weight": torch.ones(2, 2)}, r"shape \[2, 2\]"),
        ({"weight": torch.tensor([float("nan")])}, "not finite"),
        ({"bias": torch.ones(2)}, "KeyError"),
        (None, "has no weights"),
    ],
)
def test_other_weights_of_queries_are_refused(
    tmp_path: Path, state: dict[str, torch.Tensor] | None, problem: str
) -> None:
    if state:
        save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match=problem):
        read_weights(tmp_path, 8)
