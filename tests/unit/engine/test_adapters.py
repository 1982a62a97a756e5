"""LoRA adapters: peft's folders, and vectors of batches in which several models' sentences stand side by side."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from tests.merged import cosines, hidden_of, merged_model
from tests.models import ModelShelf
from tests.unit.engine.fake_executor import FakeExecutor, ids, request_of

from tritonembed_engine.batching import Batcher
from tritonembed_engine.cache import VectorCache
from tritonembed_engine.engine import EmbeddingEngine
from tritonembed_engine.errors import InvalidArgument, ModelError
from tritonembed_engine.executors.adapters import Adapters, rows_of
from tritonembed_engine.executors.loading import filler_id
from tritonembed_engine.executors.pooling import Pooler
from tritonembed_engine.executors.transformers_executor import GROUPING, TransformersExecutor, load_encoder
from tritonembed_engine.factory import add_adapters
from tritonembed_engine.model.adapters import AdapterFiles, Pair, files_of, read_adapter, read_pairs
from tritonembed_engine.model.files import ModelFiles, read_model_files
from tritonembed_engine.model.modules import Pooling
from tritonembed_engine.model.steps import Steps
from tritonembed_engine.parameters import EmbedParameters, parse_parameters
from tritonembed_engine.reference.adapter_oracle import merge_adapter
from tritonembed_engine.request import of_chosen
from tritonembed_engine.settings import ModelSettings
from tritonembed_engine.token_ids import TokenIds
from tritonembed_engine.tokenizing.text_tokenizer import TextTokenizer
from tritonembed_perf.models import write_adapter
from tritonembed_protocol.space import of_adapter

LENGTHS = (3, 17, 40, 9, 30, 5)
Write = Callable[..., Path]


@pytest.fixture
def write(shelf: ModelShelf, tmp_path: Path) -> Write:
    """Writes an adapter of BERT; `edit` changes its configuration afterwards."""

    def written(targets: Any = ("query", "value"), edit: Any = None, **options: Any) -> Path:
        folder = write_adapter(tmp_path / "law", shelf("bert"), targets, **options)
        if edit:
            file = folder / "adapter_config.json"
            file.write_text(json.dumps({**json.loads(file.read_text()), **edit}))
        return folder

    return written


@pytest.fixture
def bert(shelf: ModelShelf) -> ModelFiles:
    return read_model_files(str(shelf("bert")))


def refusal(folder: Path, files: ModelFiles, model: torch.nn.Module | None = None) -> str:
    def load() -> None:
        adapter = read_adapter("law", str(folder), files)
        Adapters(model or torch.nn.Module(), torch.float32, "cpu").add("law", list(read_pairs(adapter)))

    with pytest.raises(ModelError) as raised:
        load()
    message = str(raised.value)
    assert "\n" not in message
    assert str(folder.parent) not in message
    return message


def executor_of(folder: Path, **adapters: Path) -> tuple[TransformersExecutor, ModelFiles, dict[str, AdapterFiles]]:
    settings = ModelSettings.model_validate({"model": str(folder), "engine": {"reference": "off"}})
    files = read_model_files(str(folder))
    executor = TransformersExecutor(
        load_encoder(settings, files, "cpu"),
        Pooler(files.pooling, Steps(files.steps)),
        4096,
        64,
        filler_id(files),
        GROUPING["cpu"],
    )
    read = {name: read_adapter(name, str(path), files) for name, path in adapters.items()}
    add_adapters(executor, read, settings)
    return executor, files, read


def sentences_of(files: ModelFiles) -> list[Any]:
    rng = np.random.default_rng(0)
    return [rng.integers(5, files.vocab_size, length).astype("<i4") for length in LENGTHS]


def pooled(model: Any, sentence: Any, files: ModelFiles) -> Any:
    hidden = hidden_of(model, sentence)
    return {Pooling.MEAN: hidden.mean(0), Pooling.CLS: hidden[0]}[files.pooling[0]]


KINDS: dict[str, tuple[Any, dict[str, Any]]] = {
    "bert": (["query", "key", "value", "dense"], {"rank_pattern": {"query": 2}, "alpha_pattern": {"value": 3}}),
    "xlm-roberta": (r".*layer\.\d+\.attention\.self\.(query|value)", {"layers": ["query", "value"]}),
    "modernbert": ("all-linear", {"layers": ["Wqkv", "Wi", "Wo"], "use_rslora": True}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapters_rows_are_of_merged_weights_and_their_neighbours_of_the_base(
    kind: str, shelf: ModelShelf, tmp_path: Path
) -> None:
    targets, options = KINDS[kind]
    base = shelf(kind)
    law = write_adapter(tmp_path / "law", base, targets, **options)
    med = write_adapter(tmp_path / "med", base, targets, seed=1, **options)
    executor, files, _ = executor_of(base, law=law, med=med)
    sentences = sentences_of(files)
    batch = TokenIds.join([sentence.tobytes() for sentence in sentences])
    alone = executor.launch(batch).result()

    mixed = executor.launch(batch, adapted=[("law", 1, 3), ("med", 3, 4), ("law", 5, 6)]).result()

    oracles = {"law": merged_model(base, law), "med": merged_model(base, med)}
    for row, name in ((1, "law"), (2, "law"), (3, "med"), (5, "law")):
        expected = pooled(oracles[name], sentences[row], files)
        assert cosines(mixed[row : row + 1], expected[None])[0] >= 0.99999
        assert cosines(alone[row : row + 1], expected[None])[0] < 0.99
    for row in (0, 4):
        np.testing.assert_allclose(mixed[row], alone[row], rtol=0, atol=1e-5)
    # The model itself is unchanged.
    np.testing.assert_array_equal(executor.launch(batch).result(), alone)


def test_the_check_at_load_merges_as_peft_does(shelf: ModelShelf, write: Write, bert: ModelFiles) -> None:
    from transformers import AutoModel

    targets = ["query", "attention.output.dense"]
    folder = write(targets, rank_pattern={"query": 2}, alpha_pattern={"query": 5}, use_rslora=True)
    model = AutoModel.from_pretrained(shelf("bert"), dtype=torch.float32).eval()
    merge_adapter(model, read_adapter("law", str(folder), bert))
    [sentence] = sentences_of(bert)[:1]
    np.testing.assert_allclose(
        hidden_of(model, sentence), hidden_of(merged_model(shelf("bert"), folder), sentence), atol=1e-5
    )


class _Stacked(torch.nn.Module):  # type: ignore[misc]
    """A layer as vLLM has it: queries, keys and values of one product, and a bias that is not added yet."""

    def __init__(self) -> None:
        super().__init__()
        self.input_size, self.output_size, self.output_sizes = 4, 10, [6, 2, 2]
        self.weight = torch.nn.Parameter(torch.randn(10, 4), requires_grad=False)

    def forward(self, given: torch.Tensor) -> tuple[torch.Tensor, None]:
        return given @ self.weight.t(), None


def _around(leaf: torch.nn.Module, *path: str) -> torch.nn.Module:
    for name in reversed(path):
        parent = torch.nn.Module()
        parent.add_module(name, leaf)
        leaf = parent
    return leaf


def test_a_part_of_a_stacked_layer_gets_its_own_product() -> None:
    layer = _Stacked()
    adapters = Adapters(_around(layer, "model", "layers", "11", "self_attn", "qkv_proj"), torch.float32, "cpu")
    a, b = torch.randn(3, 4), torch.randn(2, 3)
    adapters.add("law", [Pair("layers.11.self_attn.k_proj", a, b)])
    given = torch.randn(5, 4)
    before, _ = layer(given)
    with adapters.applied([("law", 1, 3)]):
        after, _ = layer(given)
    expected = before.clone()
    expected[1:3, 6:8] += given[1:3] @ a.t() @ b.t()
    torch.testing.assert_close(after, expected)
    torch.testing.assert_close(layer(given)[0], before)


def test_a_table_of_words_gets_the_rows_of_its_ids() -> None:
    table = torch.nn.Embedding(7, 4)
    adapters = Adapters(_around(table, "model", "embeddings", "word_embeddings"), torch.float32, "cpu")
    a, b = torch.randn(2, 7), torch.randn(4, 2)
    adapters.add("law", [Pair("roberta.embeddings.word_embeddings", a, b, of_table=True)])
    given = torch.tensor([5, 2, 6])
    with torch.inference_mode(), adapters.applied([("law", 0, 2)]):
        found = table(given)
    delta = (b @ a).t()
    with torch.inference_mode():
        torch.testing.assert_close(found, table.weight[given] + torch.stack([delta[5], delta[2], torch.zeros(4)]))


def test_a_kernel_that_reads_weights_itself_gives_way() -> None:
    class Parent(torch.nn.Module):  # type: ignore[misc]
        def forward(self, given: torch.Tensor) -> torch.Tensor:
            found: torch.Tensor = self.dense(given)
            return found

    parent = Parent()
    parent.add_module("dense", torch.nn.Linear(4, 4).requires_grad_(False))
    adapters = Adapters(_around(parent, "layer", "0", "intermediate"), torch.float32, "cpu")
    adapters.add("law", [Pair("layer.0.intermediate.dense", torch.ones(1, 4), torch.ones(4, 1))])
    weight, bias = parent.dense.weight, parent.dense.bias
    parent.forward = kernel = lambda given: given @ weight.t() + bias
    given = torch.randn(3, 4)
    with adapters.applied([("law", 0, 3)], [parent]):
        changed = parent(given)
    torch.testing.assert_close(changed, kernel(given) + given.sum(1, keepdim=True))
    assert parent.forward is kernel


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        ({"peft_type": "IA3"}, "it is no LoRA adapter (peft_type IA3)"),
        ({"use_dora": True}, "DoRA scales the rows of the weights"),
        ({"modules_to_save": ["pooler"]}, "it has whole layers of its own (modules_to_save)"),
        ({"bias": "lora_only"}, "it has biases of its own (bias)"),
        ({"init_lora_weights": "pissa_niter_4"}, "it was trained on changed weights of the base"),
        ({"trainable_token_indices": [1]}, "peft's trainable_token_indices is not served"),
        ({"r": 0}, "its rank (r, rank_pattern) must be a whole number of at least 1"),
        ({"rank_pattern": {"query": 0}}, "its rank (r, rank_pattern) must be a whole number of at least 1"),
        ({"r": 8}, "encoder.layer.0.attention.self.query has matrices of 4x64 and 64x4, but the rank 8"),
        ({"lora_alpha": "much"}, "its lora_alpha (or alpha_pattern) must be a number"),
        ({"target_modules": []}, "it names no target_modules"),
        ({"target_modules": ["query", "value", "wq"]}, "it has no weights for wq of its target_modules"),
        ({"target_modules": ["query"]}, "it has weights for encoder.layer.0.attention.self.value, which"),
        ({"target_modules": "("}, "its target_modules is no regular expression"),
    ],
)
def test_what_is_not_plain_lora_is_refused(edit: dict[str, Any], reason: str, write: Write, bert: ModelFiles) -> None:
    assert refusal(write(edit=edit), bert).startswith(f"adapter law: {reason}")


def test_an_adapter_of_another_base_is_refused(shelf: ModelShelf, tmp_path: Path, bert: ModelFiles) -> None:
    wide = write_adapter(tmp_path / "wide", shelf("bert-calm"), ["query"])
    settings = ModelSettings.model_validate({"model": str(shelf("bert"))})
    model = load_encoder(settings, bert, "cpu")
    assert refusal(wide, bert, model) == (
        "adapter law: it is of another base model: encoder.layer.0.attention.self.query has 64 inputs and 64 outputs "
        "here, and 256 and 256 there"
    )
    other = write_adapter(tmp_path / "other", shelf("qwen3"), ["q_proj"])
    assert refusal(other, bert, model) == "adapter law: the model has no layer model.layers.0.self_attn.q_proj"


def test_an_adapter_that_names_another_model_of_the_hub_is_refused(write: Write, bert: ModelFiles) -> None:
    from dataclasses import replace

    folder = write(edit={"base_model_name_or_path": "BAAI/bge-small-en-v1.5"})
    of_hub = replace(bert, name="BAAI/bge-small-zh-v1.5", is_local=False)
    assert refusal(folder, of_hub) == "adapter law: it was trained for bge-small-en-v1.5, not for bge-small-zh-v1.5"
    read_adapter("law", str(folder), replace(bert, name="mirror/BGE-small-en-v1.5", is_local=False))


def test_missing_and_half_downloaded_files_are_refused(write: Write, bert: ModelFiles, tmp_path: Path) -> None:
    folder = write()
    weights = folder / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert refusal(folder, bert) == "adapter law: its adapter_model.safetensors can't be read (SafetensorError)"
    weights.unlink()
    assert refusal(folder, bert) == "adapter law: law has no weights (adapter_model.safetensors)"
    (folder / "adapter_config.json").unlink()
    assert refusal(folder, bert) == "adapter law: law is not an adapter: it has no adapter_config.json"
    assert refusal(tmp_path / "nowhere", bert) == "adapter law: there is no model folder nowhere"


def test_a_weight_without_its_other_half_is_refused(write: Write, bert: ModelFiles) -> None:
    from safetensors.numpy import load_file, save_file

    folder = write(["query"])
    state = load_file(folder / "adapter_model.safetensors")
    del state["base_model.model.encoder.layer.1.attention.self.query.lora_B.weight"]
    save_file(state, folder / "adapter_model.safetensors")
    assert "its weights are not complete: encoder.layer.1.attention.self.query has one of two" in refusal(folder, bert)
    save_file({"base_model.model.encoder.bias": np.zeros(1)}, folder / "adapter_model.safetensors")
    assert refusal(folder, bert) == "adapter law: its weight encoder.bias is not one of LoRA's"


def test_an_adapter_brings_its_prompts(write: Write, bert: ModelFiles) -> None:
    folder = write()
    (folder / "config_sentence_transformers.json").write_text(
        json.dumps({"prompts": {"query": "law: "}, "default_prompt_name": "query"})
    )
    adapters = {"law": read_adapter("law", str(folder), bert)}
    tokenizer = TextTokenizer(bert, adapters)
    asked = [EmbedParameters(adapter="law"), EmbedParameters(prompt="law: "), EmbedParameters(), EmbedParameters()]
    own, same, plain, _ = tokenizer.encode_requests([([b"a dog"], one) for one in asked])
    assert own == same != plain
    with pytest.raises(InvalidArgument, match="adapter: the model has no such adapter, but law"):
        files_of(bert, adapters, "med")
    [unknown] = tokenizer.encode_requests([([b"a dog"], EmbedParameters(adapter="med"))])
    assert isinstance(unknown, InvalidArgument)


def test_each_adapter_has_an_embedding_space(write: Write, bert: ModelFiles) -> None:
    folder = write()
    digest = read_adapter("law", str(folder), bert).digest
    space = of_adapter("0123456789ab-float32", digest)
    assert space.endswith("-float32")
    assert len(space) == len("0123456789ab-float32")
    assert space != of_adapter("1123456789ab-float32", digest)
    write(seed=1)
    assert read_adapter("law", str(folder), bert).digest != digest
    assert of_adapter("", digest) == of_adapter("0123456789ab-float32", "") == ""


def test_the_parameter_must_be_a_name() -> None:
    assert parse_parameters('{"adapter": "law"}').adapter == "law"
    with pytest.raises(InvalidArgument, match="adapter: must be a string"):
        parse_parameters('{"adapter": 1}')


def test_the_rows_of_an_adapter_stand_side_by_side_in_a_batch() -> None:
    batcher = Batcher(100, 100)
    asked = [None, "law", "med", None, "law"]
    requests = [request_of([ids(1, 2), ids(3)], adapter=name) for name in asked]
    for request in requests:
        batcher.add(request)
    batch, _ = batcher.take(0.0)
    assert batch is not None
    assert batch.adapted() == [("law", 4, 8), ("med", 8, 10)]
    assert [piece.request.adapter for piece in batch.pieces] == [None, None, "law", "law", "med"]
    first, second = batch.halves()
    assert first.adapted() == [("law", 4, 5)]
    assert second.adapted() == [("law", 0, 3), ("med", 3, 5)]
    assert rows_of([("law", 1, 2)], [0, 3, 5]) == [("law", 3, 5)]


def test_rows_whose_vectors_are_known_already_are_left_out() -> None:
    adapted = [("law", 1, 4), ("med", 4, 5), ("tax", 5, 7)]
    assert of_chosen(adapted, [0, 1, 3, 5, 6]) == [("law", 1, 3), ("tax", 3, 5)]
    assert of_chosen(adapted, []) == []


def test_equal_texts_of_two_adapters_share_no_vector() -> None:
    sentence = ids(1, 2)
    executor = FakeExecutor(max_batch_tokens=100, max_batch_sentences=50)
    engine = EmbeddingEngine(executor, cache=VectorCache(1 << 20))
    try:
        for adapter in (None, "law", "law", "med", None):
            request = request_of([sentence], adapter=adapter, keys=[("", 0, sentence, adapter)])
            engine.submit_all([request])[0].result(60)
    finally:
        engine.close()
    assert len(executor.batches) == 3
    assert [list(adapted) for adapted in executor.adapted] == [[], [("law", 0, 1)], [("med", 0, 1)]]


def test_every_request_gets_its_own_vectors_from_a_mixed_batch() -> None:
    executor = FakeExecutor(max_batch_tokens=100, max_batch_sentences=50)
    engine = EmbeddingEngine(executor)
    try:
        requests = [request_of([ids(n), ids(n, n + 1)], adapter=("law", None, "med")[n % 3]) for n in range(1, 13)]
        futures = engine.submit_all(requests)
        for n, future in enumerate(futures, 1):
            assert future.result(60).tolist() == [[n, n, 1], [n, n + 1, 2]]
    finally:
        engine.close()
    assert any(len({name for name, _, _ in adapted}) == 2 for adapted in executor.adapted)


def test_an_executor_without_adapters_refuses_them(write: Write, bert: ModelFiles) -> None:
    adapter = read_adapter("law", str(write()), bert)
    settings = ModelSettings.model_validate({"model": "x"})
    with pytest.raises(ModelError, match="adapter law: the fake executor serves none"):
        add_adapters(FakeExecutor(), {"law": adapter}, settings)


def test_an_adapter_that_changed_since_the_repository_was_written_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its manager would name another space than that of its vectors."""
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", ModuleType("triton_python_backend_utils"))
    monkeypatch.delitem(sys.modules, "tritonembed_engine.stub.triton", raising=False)
    from tritonembed_engine.stub.triton import check_digests

    rendered = {"parameters": {"adapters": {"string_value": '{"law": "0123", "med": ""}'}}}
    check_digests({"law": "0123", "med": "4567", "new": "89ab"}, rendered)
    check_digests({"law": "0123"}, {"parameters": {}})
    with pytest.raises(ModelError, match="adapter law: its files have changed since the repository was written"):
        check_digests({"law": "4567"}, rendered)
    monkeypatch.delitem(sys.modules, "tritonembed_engine.stub.triton")


@pytest.mark.parametrize(("adapters", "tried"), [({}, True), ({"law": "x"}, False)])
def test_openvinos_graph_is_not_tried_for_a_model_with_adapters(
    adapters: dict[str, str], tried: bool, bert: ModelFiles, shelf: ModelShelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tritonembed_engine import factory, vllm_factory

    fake = FakeExecutor()
    calls: list[str] = []
    monkeypatch.setattr(factory, "_openvino_executor", lambda *_: calls.append("openvino") or "no")
    monkeypatch.setattr(vllm_factory, "vllm_executor", lambda *_: fake)
    settings = ModelSettings.model_validate(
        {"model": str(shelf("bert")), "engine": {"reference": "off"}, "adapters": adapters}
    )
    assert factory.create_executor(settings, bert, "cpu") is fake
    assert bool(calls) is tried
