"""`--adapter` and the models file's `adapters`: what is accepted, and one line for what is not."""

import json
from pathlib import Path

import pytest
from tests.models import ModelShelf

from tritonembed_manager.errors import StartError
from tritonembed_manager.server.models_file import (
    ModelEntry,
    adapters_of,
    parse_models,
    read_models,
    render_settings,
    with_adapters,
)
from tritonembed_manager.server.repository import (
    ADAPTERS_PARAMETER,
    adapter_digests,
    check_adapters,
    read_configs,
    read_digests,
    render,
)
from tritonembed_manager.server.settings import RenderSettings
from tritonembed_perf.models import write_adapter
from tritonembed_protocol.served import ServedModel

MODELS = [ModelEntry("owner/first", "one"), ModelEntry("owner/second", "two"), ModelEntry("r", "rank", task="score")]


@pytest.mark.parametrize("base", ["one", "embedding", "owner/first", "first"])
def test_the_first_model_can_be_named_in_several_ways(base: str) -> None:
    first, second, _ = with_adapters(MODELS, [f"law={base}:owner/law", "med=two:owner/med"])
    assert (first.adapters, second.adapters) == ((("law", "owner/law"),), (("med", "owner/med"),))
    assert adapters_of([first, second]) == [ServedModel("law", base="embedding"), ServedModel("med", base="two")]


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ("law", "--adapter must be NAME=BASE:PATH"),
        ("law=one", "--adapter must be NAME=BASE:PATH"),
        ("=one:owner/law", "--adapter must be NAME=BASE:PATH"),
        ("law=three:owner/law", "--adapter law: there is no model three"),
        ("two=one:owner/law", "--adapter two: another model has this name"),
        ("embedding=one:owner/law", "--adapter embedding: another model has this name"),
        ("tokenizer=one:owner/law", "--adapter tokenizer: tokenizer is a part of the model embedding"),
        ("law=rank:owner/law", "--adapter law: rank is a reranker or classifier, whose adapters are not served"),
        ("law=one:./nowhere", "--adapter law: there is no folder ./nowhere"),
    ],
)
def test_bad_adapters_are_refused_in_one_line(given: str, reason: str) -> None:
    with pytest.raises(StartError) as raised:
        with_adapters(MODELS, [given])
    assert str(raised.value) == reason


def test_two_adapters_need_two_names() -> None:
    with pytest.raises(StartError, match="--adapter law: another model has this name"):
        with_adapters(MODELS, ["law=one:owner/law", "law=two:owner/law"])


def test_attached_servers_have_the_adapters_files() -> None:
    [first] = with_adapters([ModelEntry("my-model")], ["law=my-model"], attached=True)
    assert first.adapters == (("law", ""),)
    with pytest.raises(StartError, match="--adapter must be NAME=BASE for servers that run already"):
        with_adapters([ModelEntry("my-model")], ["law=my-model:./law"], attached=True)


def test_a_file_of_models_has_adapters(tmp_path: Path) -> None:
    (tmp_path / "law").mkdir()
    file = tmp_path / "models.yaml"
    file.write_text("models:\n  - path: owner/first\n    adapters:\n      law: ./law\n      med: owner/med\n")
    [entry] = read_models(file)
    assert entry.adapters == (("law", str(tmp_path / "law")), ("med", "owner/med"))


def test_a_repository_names_its_adapters_and_their_digests(shelf: ModelShelf, tmp_path: Path) -> None:
    law = write_adapter(tmp_path / "law", shelf("bert"), ["query"])
    entries = with_adapters(parse_models([str(shelf("bert"))]), [f"law=embedding:{law}"])
    [settings] = render_settings(RenderSettings("x"), entries)
    check_adapters(settings)
    render(tmp_path / "repository", settings)
    assert json.loads((tmp_path / "repository" / "model.json").read_text())["adapters"] == {"law": str(law)}
    parameters = read_configs(tmp_path / "repository")["embedder"].parameters
    digests = read_digests(parameters[ADAPTERS_PARAMETER].string_value)
    assert digests == adapter_digests(settings)
    assert len(digests["law"]) == 12
    assert read_digests("[1") == read_digests("3") == read_digests("") == {}


def test_an_adapter_that_does_not_fit_stops_the_start(shelf: ModelShelf, tmp_path: Path) -> None:
    law = write_adapter(tmp_path / "law", shelf("bert"), ["query"], r=0)
    entries = with_adapters(parse_models([str(shelf("bert"))]), [f"law=embedding:{law}"])
    [settings] = render_settings(RenderSettings("x"), entries)
    with pytest.raises(StartError) as raised:
        check_adapters(settings)
    assert str(raised.value) == ("--adapter law: its rank (r, rank_pattern) must be a whole number of at least 1")
