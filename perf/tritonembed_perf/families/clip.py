"""CLIP's text tower: causal, 77 tokens, pooled at the first end token and projected."""

from pathlib import Path
from typing import Any

from tritonembed_perf.families import vocabularies
from tritonembed_perf.families.bert import WIDTH
from tritonembed_perf.families.registry import case
from tritonembed_perf.families.sentence import OLD, Module, dense, normalize, transformer, write_sentence_files
from tritonembed_perf.families.writing import ModelParts, edit_json, random_state, write_json

CLIP = "CLIP"
PROJECTION = 96
FEATURES = {
    kind: {"method": f"get_{kind}_features", "method_output_name": "pooler_output"} for kind in ("text", "image")
}


def clip(**text: Any) -> ModelParts:
    """CLIPModel, with a small vision tower. text: changes of `text_config`."""
    tokenizer, settings = vocabularies.clip()
    shape = {"hidden_size": WIDTH, "intermediate_size": 2 * WIDTH, "num_attention_heads": 2, "num_hidden_layers": 2}
    first, last = (tokenizer.token_to_id(f"<|{end}oftext|>") for end in ("start", "end"))
    config = {
        "architectures": ["CLIPModel"],
        "logit_scale_init_value": 2.6592,
        "model_type": "clip",
        "projection_dim": PROJECTION,
        "text_config": {
            **shape,
            "bos_token_id": first,
            "eos_token_id": last,
            "max_position_embeddings": 77,
            "model_type": "clip_text_model",
            "vocab_size": tokenizer.get_vocab_size(),
            **text,
        },
        "vision_config": {**shape, "image_size": 32, "model_type": "clip_vision_model", "patch_size": 16},
        "torch_dtype": "float32",
        "transformers_version": "4.24.0",
    }
    return ModelParts(config, random_state("CLIPModel", config), tokenizer, settings)


def _write(place: Path, model: ModelParts) -> None:
    """A model and its image processor, which sentence-transformers loads too."""
    model.write(place)
    size = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    write_json(place / "preprocessor_config.json", {"image_processor_type": "CLIPImageProcessor", **size})


def _old_layout(folder: Path, model: ModelParts, *after: Module) -> None:
    _write(folder / "0_CLIPModel", model)
    write_sentence_files(folder, [Module("CLIPModel", f"{OLD}CLIPModel"), *after], max_length=None)


@case(CLIP)
def clip_text(folder: Path) -> None:
    """clip-ViT-B-32: sentence-transformers' oldest layout, and the end token 2 that the hub's config.json has."""
    _old_layout(folder, clip(eos_token_id=2))


@case(CLIP)
def clip_config_dict(folder: Path) -> None:
    """`text_config_dict`, which wins over `text_config`, as in openai/clip-vit-base-patch32."""
    model = clip()
    model.config["text_config_dict"] = model.config["text_config"]
    model.config["text_config"] = {**model.config["text_config"], "hidden_act": "gelu", "layer_norm_eps": 0.1}
    _old_layout(folder, model)


@case(CLIP)
def clip_dense(folder: Path) -> None:
    """Modules behind the tower."""
    _old_layout(folder, clip(), dense(PROJECTION, 64), normalize())


@case(CLIP)
def clip_st6(folder: Path) -> None:
    """As sentence-transformers 6 saves it."""
    _write(folder, clip())
    settings = {
        "transformer_task": "feature-extraction",
        "modality_config": FEATURES,
        "module_output_name": "sentence_embedding",
    }
    write_sentence_files(folder, [transformer()], max_length=None, settings=settings)


@case(CLIP)
def clip_nomodules(folder: Path) -> None:
    """transformers' CLIPModel."""
    _write(folder, clip())


def _write_text_only(folder: Path, model_class: str) -> None:
    model = clip()
    model.state = {name: tensor for name, tensor in model.state.items() if name.startswith("text_")}
    model.config = {
        **model.config["text_config"],
        "architectures": [model_class],
        "projection_dim": PROJECTION,
        "torch_dtype": "float32",
    }
    model.write(folder)


@case(CLIP, reference=clip_nomodules)
def clip_text_projection(folder: Path) -> None:
    """CLIPTextModelWithProjection. sentence-transformers would drop the projection: the reference is CLIPModel."""
    _write_text_only(folder, "CLIPTextModelWithProjection")


@case(CLIP, must_refuse=True)
def clip_no_projection(folder: Path) -> None:
    """CLIPTextModel, whose states are not those that CLIP compares with images."""
    _write_text_only(folder, "CLIPTextModel")


@case(CLIP, must_refuse=True)
def clip_wrong_projection(folder: Path) -> None:
    """A projection of another width than config.json says."""
    _old_layout(folder, clip())
    edit_json(folder / "0_CLIPModel" / "config.json", projection_dim=PROJECTION // 2)


@case(CLIP, must_refuse=True)
def clip_pooled(folder: Path) -> None:
    """A pooling of the tower's tokens."""
    _write(folder, clip())
    write_sentence_files(folder, [transformer(), Module("Pooling", f"{OLD}Pooling")], max_length=None)
