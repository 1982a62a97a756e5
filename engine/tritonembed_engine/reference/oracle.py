"""The reference itself: transformers' own forward in float32 on the CPU, one sentence at a time, pooled in plain code.

It shares only the steps with the code that serves: no vLLM, no flat batch, no kernel, no tokenizer of ours.
"""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from typing_extensions import assert_never

from tritonembed_engine.errors import ModelError, reason_of
from tritonembed_engine.model.adapters import AdapterFiles
from tritonembed_engine.model.architecture import config_for_reference, has_experts
from tritonembed_engine.model.checkpoint import check_complete, checkpoint_files
from tritonembed_engine.model.classifier import Classifier
from tritonembed_engine.model.clip import TEXT_TOWER
from tritonembed_engine.model.encoders import ENCODERS, ENCODERS_OF_PAIRS
from tritonembed_engine.model.files import ModelFiles
from tritonembed_engine.model.folder import read_object, weights_folder
from tritonembed_engine.model.hub_code import JINA_BERT, NEW, as_gte
from tritonembed_engine.model.jina_v3 import JINA_V3
from tritonembed_engine.model.modules import Pooling
from tritonembed_engine.model.steps import Steps
from tritonembed_engine.ragged import Ragged
from tritonembed_engine.reference.adapter_oracle import jina_v3_oracle, merge_adapter
from tritonembed_engine.reference.cases import Case, Vectors
from tritonembed_engine.reference.jina_bert_oracle import JinaBertOracle
from tritonembed_engine.reference.token_check import expected_outputs
from tritonembed_engine.token_ids import ID_MASK, TYPE_BIT

MOST_IN_FLOAT32 = 700_000_000
"""Parameters (2.6 GiB). A larger model has one layer at a time in float32; the rest stays mapped from its files."""

_ALWAYS_KNOWN = dict.fromkeys(("torch_dtype", "dtype", "auto_map", "transformers_version", "_name_or_path"))


class Oracle:
    """A model in transformers, to compute the vectors of a reference."""

    def __init__(self, model: str, revision: str | None, files: ModelFiles, trust_remote_code: bool = False) -> None:
        """Load the model. Raises ModelError, with their names, if the checkpoint lacks weights."""
        self.unknown: list[str] = []
        self._files = files
        # A classifier is computed by transformers up to its logits.
        self._steps = Steps(() if files.classifier else files.steps)
        folder = weights_folder(model, revision, files.transformer, files.is_local)
        try:
            checkpoint_files(folder)
            if files.model_type == JINA_V3:
                self._model: Any = jina_v3_oracle(folder, None)
            elif files.model_type == JINA_BERT and not trust_remote_code:
                self._model = JinaBertOracle(folder, read_object(folder / "config.json"))
            else:
                self._load(folder, trust_remote_code)
        except ModelError as error:
            raise ModelError(f"{files.name}: {error}") from None
        except Exception as error:
            said = reason_of(error, str(folder))
            reason = f"{files.name}: transformers can't load it for the reference: {said}"
            if read_object(folder / "config.json").get("auto_map") and not trust_remote_code:
                reason += "; it has code of its own: --trust-remote-code runs it"
            else:
                reason += "; --reference FILE takes sentence-transformers' vectors, --no-reference none"
            raise ModelError(reason) from error
        self._model.eval()

    def _load(self, folder: Path, trust_remote_code: bool) -> None:
        import transformers
        from transformers import AutoConfig
        from transformers.utils import logging

        given = read_object(folder / "config.json")
        if has_experts(given):
            raise ModelError(
                "transformers' NomicBERT has no mixture of experts, so there is no reference; --reference FILE takes"
                " sentence-transformers' vectors, --no-reference none"
            )
        # AutoModel would also load an encoder's decoder, and CLIP's text tower without its projection.
        kind = str(given.get("model_type"))
        has_own = kind in ENCODERS_OF_PAIRS or kind == TEXT_TOWER
        model_class: Any = getattr(transformers, ENCODERS[kind] if has_own else "AutoModel")
        if self._files.classifier is not None:
            model_class = (
                transformers.AutoModelForCausalLM
                if self._files.classifier.answers
                else transformers.AutoModelForSequenceClassification
            )
        logging.disable_progress_bar()
        logging.set_verbosity_error()
        if kind == NEW:
            # transformers has this class, so the hub's code is not run.
            trust_remote_code = False
            model_class = transformers.GteForSequenceClassification if self._files.classifier else transformers.GteModel
            config = transformers.GteConfig(**as_gte(given, "transformers"))
        else:
            config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
        config_for_reference(config, given)
        config.return_dict = True
        self._model, info = model_class.from_pretrained(
            folder,
            config=config,
            dtype=torch.float32 if _parameters(folder) <= MOST_IN_FLOAT32 else "auto",
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
            # `check_complete` names the tensors.
            ignore_mismatched_sizes=True,
            **({"attn_implementation": "eager"} if _wants_eager(config, self._files) else {}),
        )
        check_complete(info)
        known = {**type(config)().to_dict(), **_ALWAYS_KNOWN} if not trust_remote_code else config.to_dict()
        self.unknown = [key for key in given if key not in known]

    def merge(self, adapter: AdapterFiles) -> None:
        """Add an adapter to the weights of the model. Raises ModelError if they do not fit."""
        if adapter.task is not None:
            self._model = jina_v3_oracle(adapter.folder, adapter.task).eval()
        else:
            merge_adapter(self._model, adapter)

    @torch.inference_mode()
    def embed(self, cases: Sequence[Case], dtype: torch.dtype = torch.float32) -> Vectors:
        """float32 [cases, dimensions], not normalised at the end. dtype: the type that transformers computes in."""
        if dtype != torch.float32:
            self._model.to(dtype)
        rows = []
        with _in_float32(self._model) if dtype == torch.float32 else contextlib.nullcontext():
            for case in cases:
                ids = torch.from_numpy(np.frombuffer(case.ids, dtype="<i4").astype(np.int64))[None]
                if self._files.classifier is not None:
                    rows.append(self._logits(ids, self._files.classifier))
                else:
                    rows.append(self._steps(self._pooled(ids, case.skip)[None])[0])
        vectors: Vectors = torch.stack(rows).numpy()
        return vectors

    def _logits(self, ids: torch.Tensor, classifier: Classifier) -> torch.Tensor:
        """float32 [labels]. ids: [1, tokens], with their types."""
        inputs = {"input_ids": ids & ID_MASK, "attention_mask": torch.ones_like(ids)}
        if classifier.token_types > 1:
            inputs["token_type_ids"] = ids >> TYPE_BIT
        logits: torch.Tensor = self._model(**inputs).logits[0].float()
        if classifier.answers is None:
            return logits
        yes, no = classifier.answers
        return logits[-1, yes : yes + 1] - logits[-1, no : no + 1]

    def token_outputs(self, cases: Sequence[Case]) -> dict[str, Ragged]:
        """The model's outputs per token; see `token_check`."""
        if not self._files.token_outputs.per_token:
            return {}
        with _in_float32(self._model):
            return expected_outputs(self._files, self._model, cases)

    def _pooled(self, ids: torch.Tensor, skip: int) -> torch.Tensor:
        """float32 [width before the steps]. ids: [1, tokens]."""
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        if not self._files.pooling:
            if hasattr(self._model, "get_text_features"):
                return self._model.get_text_features(**inputs).pooler_output[0].float()
            return self._model(**inputs).text_embeds[0].float()
        hidden = self._model(**inputs).last_hidden_state[0].float()
        return torch.cat([_pool(pooling, hidden, skip) for pooling in self._files.pooling])


def _wants_eager(config: Any, files: ModelFiles) -> bool:
    """Whether attention is computed in plain torch: SDPA ignores soft caps, and the transformers executor uses SDPA."""
    return files.reason_against_vllm is not None or getattr(config, "attn_logit_softcapping", None) is not None


def _pool(pooling: Pooling, hidden: torch.Tensor, skip: int) -> torch.Tensor:
    """One sentence. hidden: float32 [tokens, hidden size]. skip: tokens at its start that don't count."""
    kept = hidden[skip:]
    if pooling is Pooling.CLS:
        return kept[0] if len(kept) else hidden[0]
    if pooling is Pooling.MAX:
        return kept.max(dim=0).values if len(kept) else torch.full_like(hidden[0], float("-inf"))
    if not len(kept):
        return torch.zeros_like(hidden[0])
    if pooling is Pooling.LAST_TOKEN:
        return kept[-1]
    if pooling is Pooling.MEAN:
        return kept.sum(0) / len(kept)
    if pooling is Pooling.MEAN_SQRT_LEN:
        return kept.sum(0) / len(kept) ** 0.5
    if pooling is Pooling.WEIGHTED_MEAN:
        weights = torch.arange(skip + 1, len(hidden) + 1, dtype=torch.float32)
        return (kept * weights[:, None]).sum(0) / weights.sum()
    assert_never(pooling)


def _parameters(folder: Path) -> int:
    """An estimate from the size of the weights' files."""
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
