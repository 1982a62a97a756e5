"""jina-embeddings-v2: BERT with ALiBi and a gated MLP, whose class is code in another repository."""

import shutil
from pathlib import Path
from typing import Any

from tritonembed_perf.families import jina_naive
from tritonembed_perf.families.bert import bert
from tritonembed_perf.families.modernbert import write
from tritonembed_perf.families.registry import case
from tritonembed_perf.families.writing import ModelParts, edit_json, renamed

JINA = "jina v2"
CODE = "jinaai/jina-bert-implementation"
_NAMES = {
    r"\.intermediate\.dense\.": ".mlp.gated_layers.",
    r"\.output\.dense\.": ".mlp.wo.",
    r"\.output\.LayerNorm\.": ".mlp.layernorm.",
    r"\.attention\.mlp\.wo\.": ".attention.output.dense.",
    r"\.attention\.mlp\.layernorm\.": ".attention.output.LayerNorm.",
}


def jina(code: str = CODE, **changes: Any) -> ModelParts:
    """JinaBERT with four heads of 16. code: the repository of its class. changes: keys of config.json."""
    import torch

    model = bert(num_attention_heads=4, max_position_embeddings=8192)
    state = renamed(model.state, _NAMES)
    model.state = {}
    for name, tensor in state.items():
        if "position_embeddings" in name or name.endswith("gated_layers.bias"):
            continue
        # Another seed for the half that multiplies.
        other = torch.randn(tensor.shape, generator=torch.Generator().manual_seed(len(model.state))) / 8
        model.state[name] = torch.cat([tensor, other]) if name.endswith("gated_layers.weight") else tensor
    model.config.update(
        architectures=["JinaBertForMaskedLM"],
        auto_map={
            "AutoConfig": f"{code}--configuration_bert.JinaBertConfig",
            "AutoModel": f"{code}--modeling_bert.JinaBertModel",
            "AutoModelForMaskedLM": f"{code}--modeling_bert.JinaBertForMaskedLM",
        },
        emb_pooler="mean",
        feed_forward_type="geglu",
        model_max_length=8192,
        position_embedding_type="alibi",
        _name_or_path=code,
    )
    model.config.update(changes)
    return model


def _naive(folder: Path, model: ModelParts) -> None:
    """The same weights with code in the folder."""
    write(folder, model)
    shutil.copy(jina_naive.__file__, folder / "jina_naive.py")
    code = {"AutoConfig": "jina_naive.NaiveConfig", "AutoModel": "jina_naive.NaiveJinaBert"}
    edit_json(folder / "config.json", architectures=["NaiveJinaBert"], model_type="naive-jina-bert", auto_map=code)


@case(JINA, reference=lambda folder: _naive(folder, jina()), reference_code=True)
def jina_v2(folder: Path) -> None:
    """jina-embeddings-v2-base-en: the code, which is missing, is not needed."""
    write(folder, jina())


def _eight_heads() -> ModelParts:
    return jina(num_attention_heads=8, layer_norm_eps=1e-3)


@case(JINA, reference=lambda folder: _naive(folder, _eight_heads()), reference_code=True)
def jina_v2_prefixed(folder: Path) -> None:
    """Weights under `bert.`, as JinaBertForMaskedLM saves them; eight heads."""
    model = _eight_heads()
    model.prefix("bert.")
    write(folder, model)


@case(JINA, must_refuse=True)
def jina_v2_code(folder: Path) -> None:
    """jina-embeddings-v2-base-code, whose code normalises queries and keys."""
    write(folder, jina("jinaai/jina-bert-v2-qk-post-norm"))


@case(JINA, must_refuse=True)
def jina_v2_absolute(folder: Path) -> None:
    """A table of positions instead of ALiBi."""
    write(folder, jina(position_embedding_type="absolute"))
