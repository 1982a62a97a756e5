"""The head of a masked language model: from a token's hidden state to a logit per token of the vocabulary."""

from pathlib import Path
from typing import Any

import torch

from tritonembed_engine.errors import ModelError, reason_of
from tritonembed_engine.stub.process import imports_that_stay

_WITHOUT_EFFECT = ("pooler.", "position_ids")


class MlmHead:
    """transformers' own modules, with the weights of a checkpoint.

    The last layer, a product with every token of the vocabulary, is most of the work; `logits` computes parts of it.
    """

    def __init__(self, folder: Path, device: torch.device | str, dtype: torch.dtype = torch.float32) -> None:
        """folder: of the transformer. Raises ModelError, which names missing tensors."""
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
        transform, decoder = _parts_of(model)
        self._transform = transform.to(device).eval().requires_grad_(False)
        self._decoder = decoder.to(device).eval().requires_grad_(False)
        self.vocab_size = decoder.out_features
        self.dtype = dtype

    def transform(self, hidden: torch.Tensor) -> torch.Tensor:
        """The last layer's input, [tokens, width]. hidden: [tokens, hidden size]."""
        states: torch.Tensor = self._transform(hidden.to(self.dtype))
        return states

    def logits(self, states: torch.Tensor, first: int, stop: int) -> torch.Tensor:
        """The logits of the ids from `first` to before `stop`: [tokens, stop - first]. states: of `transform`."""
        bias = self._decoder.bias
        part = None if bias is None else bias[first:stop]
        return torch.nn.functional.linear(states, self._decoder.weight[first:stop], part)


def _parts_of(model: Any) -> tuple[torch.nn.Module, torch.nn.Linear]:
    """The layers of the head but the last, and the last."""
    parts: tuple[torch.nn.Module, torch.nn.Linear] | None = None
    if hasattr(model, "cls") and hasattr(model.cls, "predictions"):
        parts = _without_decoder(model.cls.predictions)
    elif hasattr(model, "lm_head") and hasattr(model.lm_head, "decoder"):
        parts = _without_decoder(model.lm_head)
    elif hasattr(model, "vocab_projector"):
        layers = (model.vocab_transform, model.activation, model.vocab_layer_norm)
        parts = torch.nn.Sequential(*layers), model.vocab_projector
    elif hasattr(model, "head") and hasattr(model, "decoder"):
        parts = model.head, model.decoder
    if parts is None:
        raise ModelError(f"the head of a {type(model).__name__} is not known")
    return parts


def _without_decoder(head: Any) -> tuple[torch.nn.Module, torch.nn.Linear]:
    """A module whose forward ends with its layer `decoder`, divided: the module without the layer, and the layer."""
    decoder = head.decoder
    head.decoder = torch.nn.Identity()
    return head, decoder
