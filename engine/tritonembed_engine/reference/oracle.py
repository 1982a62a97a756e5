"""The reference itself: transformers' own forward in float32 on the CPU, one sentence at a time, pooled in plain code.

Nothing of what serves is in it: no vLLM, no flat batch, no kernel, no tokenizer of ours.
"""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tritonembed_engine.errors import ModelError
from tritonembed_engine.model.architecture import config_for_reference
from tritonembed_engine.model.checkpoint import checkpoint_files
from tritonembed_engine.model.files import ModelFiles
from tritonembed_engine.model.folder import read_object, weights_folder
from tritonembed_engine.model.steps import Steps
from tritonembed_engine.reasons import reason_of
from tritonembed_engine.reference.cases import Case, Vectors

MOST_IN_FLOAT32 = 700_000_000
"""Parameters, 2.6 GiB: of a larger model one layer at a time is in float32, the rest stays mapped from its files."""

UNUSED = ("pooler.", "lm_head.", "cls.", "embeddings.position_ids")
"""Weights that no vector depends on: a checkpoint may lack them."""


_ALWAYS_KNOWN = dict.fromkeys(("torch_dtype", "dtype", "auto_map", "transformers_version", "_name_or_path"))


class Oracle:
    """A model in transformers."""

    def __init__(self, model: str, revision: str | None, files: ModelFiles, trust_remote_code: bool = False) -> None:
        """Load it. Raises ModelError, with the names, where the checkpoint lacks weights."""
        from transformers import AutoConfig, AutoModel
        from transformers.utils import logging

        logging.disable_progress_bar()
        logging.set_verbosity_error()
        folder = weights_folder(model, revision, files.transformer, files.is_local)
        try:
            checkpoint_files(folder)
            config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
            config_for_reference(config, read_object(folder / "config.json"))
            config.return_dict = True
            self._model, info = AutoModel.from_pretrained(
                folder,
                config=config,
                dtype=torch.float32 if _parameters(folder) <= MOST_IN_FLOAT32 else "auto",
                trust_remote_code=trust_remote_code,
                output_loading_info=True,
            )
        except ModelError as error:
            raise ModelError(f"{files.name}: {error}") from None
        except Exception as error:
            said = reason_of(error, str(folder))
            reason = f"{files.name}: transformers can't load it for the reference: {said}"
            if read_object(folder / "config.json").get("auto_map") and not trust_remote_code:
                reason += "; its code is its own: --trust-remote-code runs it"
            else:
                reason += "; --reference FILE takes sentence-transformers' vectors, --no-reference none"
            raise ModelError(reason) from error
        check_complete(info)
        known = {**type(config)().to_dict(), **_ALWAYS_KNOWN} if not trust_remote_code else config.to_dict()
        self.unknown = [key for key in read_object(folder / "config.json") if key not in known]
        self._model.eval()
        self._files = files
        self._steps = Steps(files.steps)

    @torch.inference_mode()
    def embed(self, cases: Sequence[Case], dtype: torch.dtype = torch.float32) -> Vectors:
        """float32 [cases, dimensions], not normalised at the end. dtype: what transformers computes in."""
        if dtype != torch.float32:
            self._model.to(dtype)
        rows = []
        with _in_float32(self._model) if dtype == torch.float32 else contextlib.nullcontext():
            for case in cases:
                ids = torch.from_numpy(np.frombuffer(case.ids, dtype="<i4").astype(np.int64))[None]
                output: Any = self._model(input_ids=ids, attention_mask=torch.ones_like(ids))
                hidden = output.last_hidden_state[0].float()
                parts = [_pool(mode, hidden, case.skip) for mode in self._files.pooling]
                rows.append(self._steps(torch.cat(parts)[None])[0])
        vectors: Vectors = torch.stack(rows).numpy()
        return vectors


def check_complete(info: Any) -> None:
    """Raise ModelError, with the names, for weights that a vector depends on and that the checkpoint lacks.

    info: transformers' `output_loading_info`.
    """
    # Under a head the encoder's names have a prefix.
    missing = sorted(
        name for name in info.get("missing_keys", ()) if not any(f".{part}" in f".{name}" for part in UNUSED)
    )
    mismatched = sorted(str(entry[0]) for entry in info.get("mismatched_keys", ()))
    for what, names in (("lack", missing), ("have another shape of", mismatched)):
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise ModelError(f"the model's weights {what} {', '.join(names[:3])}{more}")


def _pool(mode: str, hidden: torch.Tensor, skip: int) -> torch.Tensor:
    """One sentence. hidden: float32 [tokens, hidden size]. skip: tokens at its start that don't count."""
    kept = hidden[skip:]
    if len(kept) == 0:
        if mode == "max":
            return torch.full_like(hidden[0], float("-inf"))
        return hidden[0] if mode == "cls" else torch.zeros_like(hidden[0])
    if mode == "cls":
        return kept[0]
    if mode == "lasttoken":
        return kept[-1]
    if mode == "max":
        return kept.max(dim=0).values
    if mode == "mean":
        return kept.sum(0) / len(kept)
    if mode == "mean_sqrt_len_tokens":
        return kept.sum(0) / len(kept) ** 0.5
    weights = torch.arange(skip + 1, len(hidden) + 1, dtype=torch.float32)
    return (kept * weights[:, None]).sum(0) / weights.sum()


def _parameters(folder: Path) -> int:
    """An estimate from the weights' size; two bytes each is the smallest that is common."""
    files = [*folder.glob("*.safetensors")] or [*folder.glob("*.bin")]
    return sum(file.stat().st_size for file in files) // 4


@contextlib.contextmanager
def _in_float32(model: torch.nn.Module) -> Iterator[None]:
    """Each module's own 16-bit weights are float32 while it runs, and only then."""
    handles = []
    for module in model.modules():
        own = {name: value for name, value in module.named_parameters(recurse=False) if value.dtype != torch.float32}
        if own:
            handles.append(module.register_forward_pre_hook(_replace_by(own, True)))
            handles.append(module.register_forward_hook(_replace_by(own, False)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _replace_by(own: dict[str, torch.nn.Parameter], widen: bool) -> Any:
    def hook(module: torch.nn.Module, *_: object) -> None:
        for name, value in own.items():
            module._parameters[name] = torch.nn.Parameter(value.float(), requires_grad=False) if widen else value

    return hook
