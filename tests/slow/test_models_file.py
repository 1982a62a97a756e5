"""`serve --models`: changes of the file take effect while requests go on, and none of them is lost."""

import json
import threading
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer
from tests.integration.serve import Serve, serving
from tests.merged import hidden_of, merged_model
from tests.models import ModelShelf
from tests.slow.test_launched_models import CHEAP

from tritonembed import EmbeddingClient, EmbeddingResult, ModelNotFoundError
from tritonembed_perf.models import write_adapter

TEXTS = ["a few words", "the cat sat on the mat"]


class File:
    """The file of models."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, *entries: str) -> None:
        self.path.write_text("models:\n" + "".join(f"  - {{{entry}}}\n" for entry in entries))


@pytest.fixture
def file(tmp_path: Path) -> File:
    return File(tmp_path / "models.yaml")


@contextmanager
def running(file: File, *more: str) -> Iterator[Serve]:
    with serving("--models", str(file.path), *CHEAP, "--health-interval=0.5", *more) as manager:
        yield manager


class Load:
    """Requests without a pause in the background; an error is raised at the end."""

    def __init__(self, manager: Serve, model: str) -> None:
        self.answers: list[EmbeddingResult] = []
        self._manager, self._model = manager, model
        self._is_over = threading.Event()
        self._errors: list[Exception] = []
        self._threads = [threading.Thread(target=self._send) for _ in range(3)]

    def _send(self) -> None:
        try:
            with EmbeddingClient(self._manager.target, model=self._model) as client:
                while not self._is_over.is_set():
                    self.answers.append(client.embed(TEXTS * 20, timeout=60))
        except Exception as error:
            self._errors.append(error)

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        for thread in self._threads:
            thread.join()
        assert self._errors == []
        assert self.answers


def models(manager: Serve) -> dict[str, str]:
    """The model of each server."""
    return {server["id"]: server["model"] for server in manager.status()["servers"]}


def vectors(manager: Serve, model: str) -> np.ndarray:
    with EmbeddingClient(manager.target, model=model) as client:
        return client.embed(TEXTS, timeout=60).embeddings


def oracle(folder: Path) -> np.ndarray:
    return SentenceTransformer(str(folder), device="cpu").encode(TEXTS)


def test_models_come_change_and_go_under_load_without_losing_a_request(shelf: ModelShelf, file: File) -> None:
    mean, cls = shelf("bert"), shelf("bert-cls")
    file.write(f"name: minilm, path: {mean}")
    with running(file) as manager, Load(manager, "minilm") as load:
        before = load_space(load)
        file.write(f"name: minilm, path: {mean}", f"name: more, path: {cls}")
        manager.until(lambda: manager.status().get("models") == ["minilm", "more"])
        np.testing.assert_allclose(vectors(manager, "more"), oracle(cls), atol=1e-5)

        file.path.write_text("models: [{name: minilm, path: 3}]")
        warning = "--models: models[0].path: Input should be a valid string; the earlier models stay"
        manager.until(lambda: warning in manager.status()["warnings"])

        file.write(f"name: minilm, path: {file.path.parent}", f"name: more, path: {cls}")
        manager.until(lambda: any("stays as it was" in line for line in manager.status()["warnings"]))
        assert models(manager) == {"server-0": "minilm", "more@server-1": "more"}

        file.write(f"name: minilm, path: {cls}")
        manager.until(lambda: list(models(manager).values()) == ["minilm"] and "server-0" not in models(manager))
        assert [line for line in manager.status()["warnings"] if "reference" not in line] == []
        assert manager.status().get("models") is None
        np.testing.assert_allclose(vectors(manager, "minilm"), oracle(cls), atol=1e-5)
        with EmbeddingClient(manager.target, model="more") as client, pytest.raises(ModelNotFoundError):
            client.embed(TEXTS)
        assert len(manager.tritonservers()) == 1
        after = load_space(load)
    spaces = [answer.embedding_space for answer in load.answers]
    assert {*spaces} == {before, after}
    wanted = {before: oracle(mean), after: oracle(cls)}
    for answer in load.answers[::10]:
        np.testing.assert_allclose(answer.embeddings[:2], wanted[answer.embedding_space], atol=1e-5)


def test_requests_are_divided_between_versions_and_shift_without_losing_one(shelf: ModelShelf, file: File) -> None:
    mean, cls = shelf("bert"), shelf("bert-cls")
    file.write(f"name: minilm, path: {mean}, weight: 75", f"name: minilm, path: {cls}, weight: 25")
    with running(file) as manager, EmbeddingClient(manager.target, model="minilm") as client:
        spaces = [client.embed(TEXTS, timeout=60).embedding_space for _ in range(20)]
        counts = sorted((count, space) for space, count in Counter(spaces).items())
        assert [count for count, _ in counts] == [5, 15]
        wanted = {counts[1][1]: oracle(mean), counts[0][1]: oracle(cls)}
        for space, vectors in wanted.items():
            found = client.embed(TEXTS, embedding_space=space, timeout=60)
            assert found.embedding_space == space
            np.testing.assert_allclose(found.embeddings, vectors, atol=1e-5)
        over_http = urllib.request.Request(
            f"http://127.0.0.1:{manager.http_port}/v1/embeddings",
            json.dumps({"input": TEXTS, "model": "minilm"}).encode(),
            {"Content-Type": "application/json", "x-embedding-space": counts[0][1]},
        )
        with urllib.request.urlopen(over_http, timeout=60) as answer:
            assert answer.headers["x-embedding-space"] == counts[0][1]
        versions = {server["version"]: server["weight"] for server in manager.status()["servers"]}
        assert versions == {mean.name: 75.0, cls.name: 25.0}
        manager.until(lambda: f'model="minilm",version="{cls.name}"' in metrics(manager))

        with Load(manager, "minilm") as load:
            file.write(f"name: minilm, path: {mean}, weight: 1", f"name: minilm, path: {cls}, weight: 99")
            manager.until(lambda: sorted(server["weight"] for server in manager.status()["servers"]) == [1.0, 99.0])
            file.write(f"name: minilm, path: {cls}")
            manager.until(lambda: [server["version"] for server in manager.status()["servers"]] == [cls.name])
            assert load_space(load) == counts[0][1]
        for answer in load.answers[::10]:
            np.testing.assert_allclose(answer.embeddings[:2], wanted[answer.embedding_space], atol=1e-5)
        assert len(manager.tritonservers()) == 1


def test_adapters_of_a_model_come_change_and_go_without_losing_a_request(
    shelf: ModelShelf, file: File, tmp_path: Path
) -> None:
    base = shelf("bert")
    places = {
        name: write_adapter(tmp_path / name, base, ["query", "value"], seed=seed)
        for seed, name in enumerate(("one", "two"), start=1)
    }

    tokenizer = SentenceTransformer(str(base), device="cpu").tokenizer
    ids = [np.array(tokenizer(text)["input_ids"], "<i4") for text in TEXTS]

    def of_adapter(name: str) -> np.ndarray:
        model = merged_model(base, places[name])
        pooled = np.stack([hidden_of(model, one).mean(0) for one in ids])
        return pooled / np.linalg.norm(pooled, axis=1, keepdims=True)

    one, two = of_adapter("one"), of_adapter("two")

    def is_served(manager: Serve, adapter: str, wanted: np.ndarray) -> bool:
        try:
            return bool(np.abs(vectors(manager, adapter) - wanted).max() < 1e-5)
        except ModelNotFoundError:
            return False

    file.write(f"name: minilm, path: {base}")
    with running(file, "--executor=transformers") as manager, Load(manager, "minilm") as load:
        load_space(load)
        file.write(f"name: minilm, path: {base}, adapters: {{law: {places['one']}}}")
        manager.until(lambda: is_served(manager, "law", one))
        # Another adapter of the same name, and one more.
        file.write(f"name: minilm, path: {base}, adapters: {{law: {places['two']}, old: {places['one']}}}")
        manager.until(lambda: is_served(manager, "law", two))
        np.testing.assert_allclose(vectors(manager, "old"), one, atol=1e-5)
        file.write(f"name: minilm, path: {base}")
        manager.until(lambda: not is_served(manager, "law", two))
        assert [line for line in manager.status()["warnings"] if "reference" not in line] == []
    # The base's vectors were the same all the time.
    assert len({answer.embedding_space for answer in load.answers}) == 1
    wanted = oracle(base)
    for answer in load.answers[::10]:
        np.testing.assert_allclose(answer.embeddings[:2], wanted, atol=1e-5)


def metrics(manager: Serve) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{manager.http_port}/metrics", timeout=60) as answer:
        return answer.read().decode()


def load_space(load: Load) -> str | None:
    """The space of the next answer."""
    seen = len(load.answers)
    while len(load.answers) <= seen:
        assert not load._errors
    return load.answers[-1].embedding_space
