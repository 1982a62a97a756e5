"""The shared part of scripts that start a server: command lines and requests."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from tests.models import ModelShelf
from tokenizers import Tokenizer
from tritonclient.grpc import service_pb2

from tritonembed_manager.tune.loads import LoadShape
from tritonembed_perf.loadgen.requests import encoded_requests
from tritonembed_perf.options import Model, run_script


@pytest.mark.parametrize(
    ("words", "rounds", "rest"),
    [
        (["a folder"], 5, []),
        (
            ["a folder", "--rounds", "2", "--", "--model-repository", "my models"],
            2,
            ["--model-repository", "my models"],
        ),
        (["a folder", "--", "--rounds", "2", "--"], 5, ["--rounds", "2", "--"]),
    ],
)
def test_arguments_after_two_dashes_are_passed_to_the_server_unchanged(
    words: list[str], rounds: int, rest: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def measure(model: Model, context: typer.Context, rounds: int = 5) -> dict[str, Any]:
        return {"model": model, "rounds": rounds, "rest": context.args}

    report = tmp_path / "report.json"
    monkeypatch.setattr(sys, "argv", ["script", "--json", str(report), *words])
    with pytest.raises(SystemExit) as ended:
        run_script("script", "", measure)
    assert ended.value.code == 0
    written = json.loads(report.read_text())
    assert (written["model"], written["rounds"], written["rest"]) == ("a folder", rounds, rest)
    assert written["command"].startswith("python -m tritonembed_perf.scripts.script --json report.json ")


@pytest.mark.parametrize(("sentences", "texts", "count"), [(4, 10, 2), (1, 10, 10), (16, 10, 1)])
def test_requests_have_the_shape_of_their_load(shelf: ModelShelf, sentences: int, texts: int, count: int) -> None:
    tokenizer = Tokenizer.from_file(f"{shelf('bert')}/tokenizer.json")
    requests = encoded_requests(tokenizer, LoadShape(12, sentences, 3), texts)
    assert len(requests) == count
    for request in requests:
        [tensor] = service_pb2.ModelInferRequest.FromString(request).inputs
        assert list(tensor.shape) == [sentences, 1]
