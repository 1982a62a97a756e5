"""Names of served models, and of their Triton models."""

import pytest

from tritonembed_protocol.served import FIRST_MODEL, ServedModel, reason_against_name


def test_the_first_model_has_the_names_of_the_only_model():
    assert FIRST_MODEL.triton_models == ("tokenizer", "embedder", "embedding", "embedding_chunks")


def test_the_parts_of_another_model_begin_with_its_name():
    assert ServedModel("bge").triton_models == ("bge_tokenizer", "bge_embedder", "bge", "bge_chunks")
    assert ServedModel("bge").with_vectors == ("bge", "bge_chunks", "bge_embedder")


@pytest.mark.parametrize("name", ["a", "bge-m3", "v1.5", "7b", "A_b", "embedding", "x" * 100])
def test_these_names_are_allowed(name):
    assert reason_against_name(name) is None


@pytest.mark.parametrize(
    "name",
    *[["", ".", "-a", "_a", "a/b", "a b", "a\n", "ä", "a:b", "x" * 101, "embedder", "tokenizer", "a_embedder"]],
)
def test_these_names_are_refused_with_a_reason(name):
    assert reason_against_name(name)
