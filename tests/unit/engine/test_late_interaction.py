"""ColBERT's layouts give the token vectors of sentence-transformers' MultiVectorEncoder.

perf/tritonembed_perf/families has more layouts, through the direct executor.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tritonembed_engine.errors import ModelError
from tritonembed_engine.executors.building import heads_of
from tritonembed_engine.executors.loading import filler_id
from tritonembed_engine.executors.padding import Grouping
from tritonembed_engine.executors.pooling import Pooler
from tritonembed_engine.executors.transformers_executor import (
    GROUPING,
    TransformersExecutor,
    load_encoder,
)
from tritonembed_engine.factory import unseen_id
from tritonembed_engine.model.files import ModelFiles, read_model_files
from tritonembed_engine.model.steps import Steps
from tritonembed_engine.parameters import EmbedParameters
from tritonembed_engine.settings import ModelSettings
from tritonembed_engine.token_ids import TokenIds
from tritonembed_engine.tokenizing.text_tokenizer import TextTokenizer
from tritonembed_engine.tokenizing.token_choice import TokenChoice
from tritonembed_engine.vectors import multi_vector_elements
from tritonembed_perf.families.registry import load_cases
from tritonembed_perf.families.writing import edit_json

TEXTS = [
    "",
    "what is the river?",
    "hello, world! (and more)",
    "[MASK] and [unused0] in a text [MASK]",
    "naïve 😀 " * 9,
    "river " * 99,
]
CASES = (
    "colbert_hf",
    "colbert_pylate",
    "colbert_modernbert",
    "colbert_two_dense",
    "colbert_st6_min",
    "colbert_jina_v1",
    "colbert_jina_v2",
)


def written(folder: Path, name: str) -> ModelFiles:
    load_cases()[name].write(folder)
    return read_model_files(str(folder))


def executor_of(files: ModelFiles) -> TransformersExecutor:
    settings = ModelSettings.model_validate({"model": str(files.folder), "engine": {"executor": "transformers"}})
    model, pooler = load_encoder(settings, files, "cpu"), Pooler(files.pooling, Steps(files.steps))
    fill, heads, unseen = filler_id(files), heads_of(files), unseen_id(files)
    return TransformersExecutor(model, pooler, 4096, 64, fill, GROUPING["cpu"], heads, unseen=unseen)


@pytest.mark.parametrize("name", CASES)
def test_token_vectors_are_sentence_transformers(tmp_path: Path, name: str) -> None:
    from sentence_transformers import MultiVectorEncoder

    files = written(tmp_path, name)
    executor, choice, tokenizer = executor_of(files), TokenChoice(files), TextTokenizer(files)
    folder = tmp_path
    if reference := load_cases()[name].reference:
        # The same weights with code in the folder.
        folder = tmp_path / "reference"
        folder.mkdir()
        reference(folder)
    theirs: Any = MultiVectorEncoder(str(folder), device="cpu", trust_remote_code=folder != tmp_path)
    for kind, encode in ((None, theirs.encode), ("query", theirs.encode_query), ("passage", theirs.encode_document)):
        parameters = EmbedParameters(input_type=kind)
        [answer] = tokenizer.encode_requests([([text.encode() for text in TEXTS], parameters)])
        assert isinstance(answer, list)
        sentences = TokenIds.join(answer)
        asked = choice.outputs_of(parameters)
        assert asked == ("multi_vector",)
        pending = executor.launch(sentences, choices=choice.choose(parameters, asked, sentences))
        pending.result()
        elements = multi_vector_elements(pending.token_outputs["multi_vector"], parameters, choice.normalize)
        for text, element in zip(TEXTS, elements, strict=True):
            expected = np.asarray(encode([text])[0])
            assert int.from_bytes(element[:4], "little") == len(expected), (kind, text)
            np.testing.assert_allclose(
                np.frombuffer(element, "<f4", offset=4).reshape(expected.shape), expected, atol=1e-4
            )


def test_tokens_that_expand_a_query_are_not_seen_by_the_others() -> None:
    sentences = TokenIds.join([np.array(ids, "<i4").tobytes() for ids in ([1, 9, 2, 9, 9], [9, 9], [1, 2, 9], [1, 2])])
    [group] = Grouping(100, 100).groups(sentences, 0)
    seen = {tuple(group.ids[row]): group.seen(9)[row].astype(int).tolist() for row in range(4)}
    assert seen == {
        (1, 9, 2, 9, 9): [1, 1, 1, 0, 0],
        (9, 9, 0, 0, 0): [1, 0, 0, 0, 0],
        (1, 2, 9, 0, 0): [1, 1, 0, 0, 0],
        (1, 2, 0, 0, 0): [1, 1, 0, 0, 0],
    }


def test_only_queries_are_expanded(tmp_path: Path) -> None:
    tokenizer = TextTokenizer(written(tmp_path, "colbert_hf"))
    jobs = [([b"a", b"b " * 99], EmbedParameters(input_type=kind)) for kind in ("query", "passage", None)]
    lengths = [[len(ids) // 4 for ids in answer] for answer in tokenizer.encode_requests(jobs)]  # type: ignore[union-attr]
    assert lengths == [[32, 32], [4, 48], [3, 101]]


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"query_expansion": {"strategy": "all"}}, "query_expansion has no strategy fixed or min"),
        ({"query_expansion": {"strategy": "min", "length": 0}}, "query_expansion has no length of at least 1"),
        ({"query_expansion": {"strategy": "min", "length": 8, "token": 3}}, "query_expansion: token is not a text"),
        ({"query_length": 0}, "query_length is not a whole number"),
    ],
)
def test_settings_that_can_not_be_followed_are_refused(tmp_path: Path, changes: dict[str, Any], problem: str) -> None:
    load_cases()["colbert_st6"].write(tmp_path)
    edit_json(tmp_path / "sentence_bert_config.json", **changes)
    with pytest.raises(ModelError, match=problem):
        read_model_files(str(tmp_path))


def test_the_hubs_xlm_r_with_other_positions_is_refused_in_a_line(tmp_path: Path) -> None:
    load_cases()["colbert_jina_v2"].write(tmp_path)
    edit_json(tmp_path / "config.json", position_embedding_type="absolute")
    with pytest.raises(ModelError, match=r"^\S+: its code is xlm-\S+, but .* position_embedding_type 'absolute'$"):
        read_model_files(str(tmp_path))


def test_modules_of_another_kind_are_refused(tmp_path: Path) -> None:
    load_cases()["colbert_pylate"].write(tmp_path)
    listed = [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Dense", "type": "pylate.models.Dense.Dense"},
        {"idx": 2, "name": "2", "path": "2_HierarchicalTokenPooling", "type": "sentence_transformers.TokenPooling"},
    ]
    import json

    (tmp_path / "modules.json").write_text(json.dumps(listed))
    with pytest.raises(ModelError, match="a TokenPooling module in a multi-vector model can't be served"):
        read_model_files(str(tmp_path))
