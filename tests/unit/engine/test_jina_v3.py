"""jina-embeddings-v3: the base model and its five tasks, against transformers with merged weights."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.merged import cosines, hidden_of

from tritonembed_engine.errors import ModelError
from tritonembed_engine.executors.transformers_executor import (
    load_encoder,
)
from tritonembed_engine.factory import add_adapters, create_executor
from tritonembed_engine.model.adapters import read_adapter, read_pairs
from tritonembed_engine.model.files import read_model_files
from tritonembed_engine.reference.making import make_reference
from tritonembed_engine.settings import ModelSettings
from tritonembed_engine.token_ids import TokenIds
from tritonembed_perf.families.gte import JINA_TASKS
from tritonembed_perf.families.registry import load_cases

LENGTHS = (4, 19, 40, 7, 11, 30)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The layout of the hub, with random weights; a prompt has the name of a task."""
    made = tmp_path_factory.mktemp("jina") / "jina_v3"
    load_cases()["jina_v3"].write(made)
    settings = made / "config_sentence_transformers.json"
    prompts = {"retrieval.query": "Find: ", "separation": ""}
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "prompts": prompts}))
    return made


def merged(folder: Path, task: str | None) -> Any:
    """transformers' class, whose weights are merged here by the formulas of jina's code."""
    from transformers import JinaEmbeddingsV3Config, JinaEmbeddingsV3Model

    config = json.loads((folder / "config.json").read_text())
    stored = load_file(folder / "model.safetensors")
    model = JinaEmbeddingsV3Model(
        JinaEmbeddingsV3Config(
            **{key: config[key] for key in config if key.endswith(("_size", "_layers", "_heads", "_eps"))},
            pad_token_id=config["pad_token_id"],
            max_position_embeddings=config["max_position_embeddings"],
            rope_parameters={"rope_theta": config["rotary_emb_base"], "rope_type": "default"},
        ),
        add_pooling_layer=False,
    ).eval()

    def weight(stem: str) -> torch.Tensor:
        whole = stored[f"{stem}.parametrizations.weight.original"]
        if task is None:
            return whole
        a, b = (stored[f"{stem}.parametrizations.weight.0.lora_{factor}"][JINA_TASKS.index(task)] for factor in "AB")
        product = a @ b if "embeddings" in stem else b @ a
        return whole + product.view(whole.shape) * config["lora_alpha"] / config["lora_rank"]

    model.embeddings.word_embeddings.weight.data = weight("roberta.embeddings.word_embeddings")
    model.embeddings.token_type_embeddings.weight.data = stored["roberta.embeddings.token_type_embeddings.weight"]
    model.embeddings.LayerNorm.load_state_dict({key: stored[f"roberta.emb_ln.{key}"] for key in ("weight", "bias")})
    for number, layer in enumerate(model.layers):
        stem, attention = f"roberta.encoder.layers.{number}", layer.self_attn
        parts = (attention.q_proj, attention.k_proj, attention.v_proj)
        joined, bias = weight(f"{stem}.mixer.Wqkv").chunk(3), stored[f"{stem}.mixer.Wqkv.bias"].chunk(3)
        for part, rows, own in zip(parts, joined, bias, strict=True):
            part.weight.data, part.bias.data = rows, own
        for name, module in (
            ("mixer.out_proj", attention.o_proj),
            ("mlp.fc1", layer.mlp.fc1),
            ("mlp.fc2", layer.mlp.fc2),
        ):
            module.weight.data, module.bias.data = weight(f"{stem}.{name}"), stored[f"{stem}.{name}.bias"]
        for name, module in (("norm1", layer.post_attention_layernorm), ("norm2", layer.post_mlp_layernorm)):
            module.load_state_dict({key: stored[f"{stem}.{name}.{key}"] for key in ("weight", "bias")})
    return model


def test_one_batch_holds_the_base_model_and_all_tasks(folder: Path) -> None:
    settings = ModelSettings.model_validate(
        {"model": str(folder), "engine": {"reference": "off"}, "adapters": {task: task for task in JINA_TASKS}}
    )
    files = read_model_files(str(folder))
    assert files.tasks == tuple(JINA_TASKS)
    executor = create_executor(settings, files, "cpu")
    assert executor.name == "transformers"
    add_adapters(executor, {task: read_adapter(task, task, files) for task in JINA_TASKS}, settings)
    rng = np.random.default_rng(0)
    sentences = [rng.integers(5, files.vocab_size, length).astype("<i4") for length in LENGTHS]
    batch = TokenIds.join([sentence.tobytes() for sentence in sentences])
    rows = [(task, row, row + 1) for row, task in enumerate(JINA_TASKS, 1)]
    mixed, alone = executor.launch(batch, adapted=rows).result(), executor.launch(batch).result()
    for row, task in enumerate([None, *JINA_TASKS]):
        expected = hidden_of(merged(folder, task), sentences[row]).mean(0)
        assert cosines(mixed[row : row + 1], expected[None])[0] >= 0.99999
        if task is not None:
            assert cosines(alone[row : row + 1], expected[None])[0] < 0.99
    np.testing.assert_allclose(mixed[0], alone[0], rtol=0, atol=1e-5)


def test_the_check_at_load_knows_the_tasks(folder: Path) -> None:
    """Its reference is not of the base model."""
    reference = make_reference(str(folder), None, 16, False, ("query", "retrieval.query"))
    model = merged(folder, "retrieval.query")
    for number in (0, 7, 12):
        case = reference.cases[number]
        expected = hidden_of(model, np.frombuffer(case.ids, "<i4")).mean(0)
        assert cosines(reference.vectors[number : number + 1], expected[None])[0] >= 0.99999


def test_a_task_has_the_prompt_of_its_name(folder: Path) -> None:
    files = read_model_files(str(folder))
    assert read_adapter("query", "retrieval.query", files).files.prompt_for(None) == "Find: "
    assert read_adapter("other", "text-matching", files).files.prompt_for(None) == ""
    digests = {read_adapter("x", task, files).digest for task in JINA_TASKS}
    assert len(digests) == len(JINA_TASKS)


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        ({"position_embedding_type": "alibi"}, "but it is not served with the position_embedding_type 'alibi'"),
        ({"use_reg_tokens": True}, "but it is not served with the use_reg_tokens 'True'"),
        ({"rotary_emb_base": None}, "rotary_emb_base in config.json must be a number above 0"),
        ({"lora_adaptations": [1]}, "lora_adaptations in config.json must be names"),
    ],
)
def test_another_variant_is_refused(edit: dict[str, Any], reason: str, folder: Path, tmp_path: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    for file in folder.iterdir():
        (tmp_path / file.name).symlink_to(file)
    (tmp_path / "config.json").unlink()
    (tmp_path / "config.json").write_text(json.dumps({**config, **edit}))
    with pytest.raises(ModelError) as raised:
        read_model_files(str(tmp_path))
    assert reason in str(raised.value)


def test_a_checkpoint_that_lacks_a_factor_or_a_weight_is_refused(folder: Path, tmp_path: Path) -> None:
    for file in folder.iterdir():
        if file.name != "model.safetensors":
            (tmp_path / file.name).symlink_to(file)
    state = load_file(folder / "model.safetensors")
    factor = "roberta.encoder.layers.1.mlp.fc1.parametrizations.weight.0.lora_B"
    save_file({name: tensor for name, tensor in state.items() if name != factor}, tmp_path / "model.safetensors")
    files = read_model_files(str(tmp_path))
    with pytest.raises(ModelError, match=r"adapter query: its weights are not complete: .*layers\.1\.mlp\.fc1"):
        list(read_pairs(read_adapter("query", "retrieval.query", files)))
    lacking = "roberta.encoder.layers.0.norm1.weight"
    save_file({name: tensor for name, tensor in state.items() if name != lacking}, tmp_path / "model.safetensors")
    settings = ModelSettings.model_validate({"model": str(tmp_path)})
    with pytest.raises(ModelError, match=r"lack layers\.0\.post_attention_layernorm\.weight"):
        load_encoder(settings, replace(files, folder=tmp_path), "cpu")
