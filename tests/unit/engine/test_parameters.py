"""Request parameters: which are accepted, and the errors for the rest."""

import json
from dataclasses import asdict
from typing import Any

import pytest

from tritonembed_engine import parameters
from tritonembed_engine.errors import InvalidArgument
from tritonembed_engine.parameters import LONGEST_KEPT, EmbedParameters, Kept, parse_parameters

ASKED = (
    "truncate",
    "chunk_tokens",
    "input_type",
    "prompt_name",
    "prompt",
    "instruction",
    "dimensions",
    "spans",
    "normalize",
    "embedding_space",
    "adapter",
    "outputs",
    "top_k",
)
"""Parameters whose default is the model's own."""


@pytest.mark.parametrize(
    ("given", "outputs"),
    [
        ("dense", ("dense",)),
        ("sparse, dense", ("dense", "sparse")),
        ("multi_vector,sparse", ("sparse", "multi_vector")),
    ],
)
def test_outputs_have_one_order(given: str, outputs: tuple[str, ...]) -> None:
    assert parse_parameters(json.dumps({"outputs": given})).outputs == outputs


@pytest.mark.parametrize("given", ["", "all", "dense,", "dense,dense", "Dense", 3, None, True, ["dense"]])
def test_other_outputs_are_refused(given: Any) -> None:
    with pytest.raises(InvalidArgument, match="outputs: must be one or more of dense, sparse, multi_vector"):
        parse_parameters(json.dumps({"outputs": given}))


@pytest.mark.parametrize("given", [-1, -0.1, "1", True, None, float("inf"), float("nan")])
def test_a_threshold_that_is_no_number_is_refused(given: Any) -> None:
    with pytest.raises(InvalidArgument, match="sparse_threshold: must be a number of at least 0"):
        parse_parameters(json.dumps({"sparse_threshold": given}))


@pytest.mark.parametrize("raw", ["", "{}"])
def test_no_parameters_mean_the_defaults_of_the_contract(raw: str) -> None:
    assert parse_parameters(raw) == EmbedParameters()
    others = {"chunk_overlap": 0, "embedding_type": "float", "sparse_threshold": 0.0, "return_tokens": False}
    others |= {"cache": True, "cache_salt": ""}
    assert asdict(EmbedParameters()) == {**dict.fromkeys(ASKED), **others}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("truncate", value) for value in ("END", "START", "NONE", "CHUNK")),
        *(("input_type", value) for value in ("query", "passage")),
        *(("embedding_type", value) for value in ("float", "float16", "int8", "uint8", "binary", "ubinary")),
        *((name, value) for name in ("prompt_name", "prompt") for value in ("", "query", "naïve 😀: ")),
        *(("instruction", value) for value in ("find cats", "naïve {instruction} 😀")),
        *(("dimensions", value) for value in (1, 256, 1 << 40)),
        *(("normalize", value) for value in (True, False)),
        ("embedding_space", "3f2a9c01b7de-float32"),
        ("top_k", 1),
        *(("sparse_threshold", value) for value in (0, 0.5, 3)),
        *(("return_tokens", value) for value in (True, False)),
        *(("cache", value) for value in (True, False)),
        *(("cache_salt", value) for value in ("", "a user", "x" * 128)),
    ],
)
def test_every_allowed_value_arrives(name: str, value: Any) -> None:
    assert getattr(parse_parameters(json.dumps({name: value})), name) == value


def test_all_parameters_together_arrive() -> None:
    given: dict[str, Any] = {
        "truncate": "NONE",
        "input_type": "query",
        "prompt_name": "other",
        "dimensions": 7,
        "embedding_type": "ubinary",
        "normalize": False,
    }
    assert parse_parameters(json.dumps(given)) == EmbedParameters(**given)


def test_sizes_of_chunks_arrive_with_the_chunks_alone() -> None:
    found = parse_parameters(json.dumps({"truncate": "CHUNK", "chunk_tokens": 32, "chunk_overlap": 4}))
    assert (found.truncate, found.chunk_tokens, found.chunk_overlap) == ("CHUNK", 32, 4)
    for name in ("chunk_tokens", "chunk_overlap"):
        for other in ({}, {"truncate": "END"}):
            with pytest.raises(InvalidArgument, match=f"^{name}: needs truncate=CHUNK$"):
                parse_parameters(json.dumps({name: 8, **other}))


def test_long_prompts_are_not_kept_in_memory() -> None:
    kept = parameters._kept.cache_info().currsize
    for number in range(5):
        prompt = f"{number}" * 10_000
        assert parse_parameters(json.dumps({"prompt": prompt})).prompt == prompt
    assert parameters._kept.cache_info().currsize == kept


def test_parameters_that_triton_adds_are_ignored() -> None:
    given = json.dumps({"triton_enable_empty_final_response": True, "dimensions": 3})
    assert parse_parameters(given) == EmbedParameters(dimensions=3)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("cache", value) for value in ("false", 0, None)),
        *(("cache_salt", value) for value in (1, None, "x" * 129)),
        ("truncate", "end"),
        ("truncate", ""),
        ("truncate", 1),
        ("truncate", True),
        ("truncate", None),
        ("truncate", ["END"]),
        ("truncate", {"END": 1}),
        ("input_type", "document"),
        ("input_type", 0),
        ("input_type", None),
        ("embedding_type", "float32"),
        ("embedding_type", 8),
        ("prompt_name", 1),
        ("prompt_name", None),
        ("prompt_name", ["query"]),
        ("prompt", 1),
        ("prompt", None),
        ("prompt", {"query": "q"}),
        ("instruction", 1),
        ("instruction", None),
        ("instruction", ""),
        ("instruction", " \n"),
        ("dimensions", True),
        ("dimensions", False),
        ("dimensions", 0),
        ("dimensions", -1),
        ("dimensions", 2.0),
        ("dimensions", "2"),
        ("dimensions", None),
        ("chunk_tokens", 0),
        ("chunk_tokens", True),
        ("chunk_tokens", "8"),
        ("chunk_tokens", None),
        ("chunk_overlap", -1),
        ("chunk_overlap", 1.0),
        ("normalize", 0),
        ("normalize", 1),
        ("normalize", "true"),
        ("normalize", None),
    ],
)
def test_a_wrong_value_or_type_is_refused_by_the_name_of_its_parameter(name: str, value: Any) -> None:
    with pytest.raises(InvalidArgument) as refused:
        parse_parameters(json.dumps({name: value}))
    assert refused.value.name == name
    assert str(refused.value).startswith(f"{name}: must ")


def test_a_prompt_is_named_or_given_not_both() -> None:
    with pytest.raises(InvalidArgument, match=r"^prompt: can't be given together with prompt_name$"):
        parse_parameters(json.dumps({"prompt_name": "query", "prompt": "secret"}))


@pytest.mark.parametrize("other", ["prompt", "prompt_name"])
def test_an_instruction_comes_without_a_prompt_and_for_queries_alone(other: str) -> None:
    with pytest.raises(InvalidArgument, match=rf"^instruction: can't be given together with {other}$"):
        parse_parameters(json.dumps({"instruction": "secret", other: "query"}))
    with pytest.raises(InvalidArgument, match=r"^instruction: is for queries: input_type can't be passage$"):
        parse_parameters(json.dumps({"instruction": "secret", "input_type": "passage"}))
    found = parse_parameters(json.dumps({"instruction": "find", "input_type": "query"}))
    assert (found.instruction, found.input_type) == ("find", "query")


@pytest.mark.parametrize("embedding_type", ["int8", "uint8"])
def test_bytes_are_refused_without_normalisation(embedding_type: str) -> None:
    with pytest.raises(InvalidArgument, match="needs normalize=true") as refused:
        parse_parameters(json.dumps({"embedding_type": embedding_type, "normalize": False}))
    assert refused.value.name == "embedding_type"
    accepted = parse_parameters(json.dumps({"embedding_type": embedding_type, "normalize": True}))
    assert accepted == EmbedParameters(embedding_type=embedding_type, normalize=True)


def test_an_unknown_parameter_is_named_and_the_known_ones_are_listed() -> None:
    with pytest.raises(InvalidArgument, match="unknown parameter") as refused:
        parse_parameters('{"dimension": 3}')
    message = str(refused.value)
    assert "'dimension'" in message
    assert ", ".join(EmbedParameters.__dataclass_fields__) in message
    assert "prompt, instruction, dimensions" in message


@pytest.mark.parametrize("name", ["x" * 10_000, "truncate", "input_type", "dimensions", "embedding_type", "normalize"])
def test_an_error_never_holds_long_input(name: str) -> None:
    secret = "secret " * 1000
    with pytest.raises(InvalidArgument) as refused:
        parse_parameters(json.dumps({name: secret}))
    assert "secret" not in str(refused.value)
    assert len(str(refused.value)) < 300


def test_an_unknown_name_is_printed_without_its_control_characters() -> None:
    with pytest.raises(InvalidArgument) as refused:
        parse_parameters(json.dumps({"a\nb\x1b[31m": 1}))
    assert str(refused.value).isprintable()


def test_a_string_of_parameters_is_read_once_unless_it_is_long_or_wrong() -> None:
    seen: list[str] = []

    def read(raw: str) -> int:
        seen.append(raw)
        if raw == "wrong":
            raise InvalidArgument("wrong", "is wrong")
        return len(raw)

    once, long = Kept(read), "x" * (LONGEST_KEPT + 1)
    assert [once("a"), once("a"), once(long), once(long)] == [1, 1, LONGEST_KEPT + 1, LONGEST_KEPT + 1]
    for _ in range(2):
        with pytest.raises(InvalidArgument, match="wrong: is wrong"):
            once("wrong")
    assert seen == ["a", long, long, "wrong", "wrong"]
