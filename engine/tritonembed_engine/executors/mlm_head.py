"""The head of a masked language model: from a token's hidden state to a logit per token of the vocabulary."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tritonembed_engine.errors import ModelError, reason_of
from tritonembed_engine.stub.process import imports_that_stay

_WITHOUT_EFFECT = ("pooler.", "position_ids")


class MlmHead:
    """transformers' own modules, with the weights of a checkpoint. hidden: [tokens, hidden size]."""

    def __init__(self, folder: Path, device: torch.device | str, dtype: torch.dtype = torch.float32) -> None:
        """folder: of the transformer. Raises ModelError, which names the tensors that lack."""
        with imports_that_stay():
            from transformers import AutoModelForMaskedLM
        try:
            model, info = AutoModelForMaskedLM.from_pretrained(
                folder, dtype=dtype, output_loading_info=True, local_files_only=True, trust_remote_code=False
            )
        except Exception as error:
            raise ModelError(
                f"transformers can't load its masked language model: {reason_of(error, str(folder))}"
            ) from error
        missing = sorted(name for name in info["missing_keys"] if not any(part in name for part in _WITHOUT_EFFECT))
        if missing:
            raise ModelError(f"the model's weights lack {', '.join(missing[:3])}")
        # The encoder's weights are freed with the model.
        parts, self._apply = _parts_of(model)
        self._parts = torch.nn.ModuleList(parts).to(device).eval().requires_grad_(False)
        self.dtype = dtype

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        """[tokens, vocabulary]."""
        logits: torch.Tensor = self._apply(*self._parts, hidden.to(self.dtype))
        return logits


def _parts_of(model: Any) -> tuple[list[torch.nn.Module], Callable[..., Any]]:
    """The modules of the head, and how they are applied to hidden states."""
    if hasattr(model, "cls"):
        return [model.cls], lambda head, hidden: head(hidden)
    if hasattr(model, "lm_head"):
        return [model.lm_head], lambda head, hidden: head(hidden)
    if hasattr(model, "vocab_projector"):
        parts = [model.vocab_transform, model.activation, model.vocab_layer_norm, model.vocab_projector]
        return parts, lambda transform, act, norm, projector, hidden: projector(norm(act(transform(hidden))))
    if hasattr(model, "head") and hasattr(model, "decoder"):
        return [model.head, model.decoder], lambda head, decoder, hidden: decoder(head(hidden))
    raise ModelError(f"the head of a {type(model).__name__} is not known")
