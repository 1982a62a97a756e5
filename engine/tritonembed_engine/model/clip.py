"""CLIP's text tower: its part of config.json, and the modules around it.

The model pools itself: a text's vector is the projection of the hidden state at the first end token.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tritonembed_engine.errors import ModelError
from tritonembed_engine.model.folder import read_json
from tritonembed_engine.model.modules import modules_in_order

TEXT_TOWER = "clip_text_model"
"""`model_type` of the text tower alone."""

TEXT_MODALITY = {"method": "get_text_features", "method_output_name": "pooler_output"}
"""The call of the model in sentence-transformers' `modality_config`."""

_PROJECTION = 512
"""transformers' default of `projection_dim`."""


def text_tower(config: Mapping[str, Any], folder: Path) -> dict[str, Any] | None:
    """The text tower's config.json, with the projection's width; None if the model is not CLIP.

    config: config.json of CLIPModel or of CLIPTextModelWithProjection. folder: of the model. Raises ModelError if the
    tower has no projection, or if modules.json takes another output.
    """
    kind = config.get("model_type")
    if kind not in ("clip", TEXT_TOWER):
        return None
    listed = read_json(folder / "modules.json")
    if kind == TEXT_TOWER:
        if list(config.get("architectures") or ()) != ["CLIPTextModelWithProjection"] or listed is not None:
            raise ModelError("a CLIPTextModel without its projection can't be served")
        return {"projection_dim": _PROJECTION, **config}
    names = [name for name, _ in modules_in_order(listed)] if listed is not None else []
    if names[1:2] == ["Pooling"]:
        raise ModelError(f"the modules {', '.join(names)} can't be served with a CLIP model: it pools itself")
    # If the older key exists, transformers ignores the newer, even for values that are missing in the older.
    given = config.get("text_config_dict")
    tower = config.get("text_config") if given is None else given
    if not isinstance(tower, dict | None):
        raise ModelError("text_config in config.json is not an object")
    projection = config.get("projection_dim", _PROJECTION)
    return {**(tower or {}), "model_type": TEXT_TOWER, "projection_dim": projection}
