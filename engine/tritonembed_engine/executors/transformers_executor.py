"""The transformers executor: Hugging Face's own model, over groups of sentences of similar length.

It serves encoder families that vLLM lacks. Batches, padding, pooling and the steps after it are the engine's.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tritonembed_engine.errors import EmbedError, ModelError, reason_of
from tritonembed_engine.executors.adapters import Adapters
from tritonembed_engine.executors.base import Pending, Ready, explain, return_free_memory
from tritonembed_engine.executors.jina_bert import load_jina_bert
from tritonembed_engine.executors.loading import asked_dtype, refuse_arguments
from tritonembed_engine.executors.padding import Grouping, PaddedGroup
from tritonembed_engine.executors.pooling import Pooler
from tritonembed_engine.executors.token_heads import TokenHeads
from tritonembed_engine.model.architecture import config_for_reference
from tritonembed_engine.model.checkpoint import check_complete, checkpoint_files
from tritonembed_engine.model.clip import text_tower
from tritonembed_engine.model.encoders import ENCODERS
from tritonembed_engine.model.files import ModelFiles
from tritonembed_engine.model.folder import read_object, weights_folder
from tritonembed_engine.model.hub_code import JINA_BERT, NEW, as_gte
from tritonembed_engine.model.jina_v3 import JINA_V3, as_transformers_has_it, base_state
from tritonembed_engine.request import Adapted, Choices
from tritonembed_engine.settings import ModelSettings
from tritonembed_engine.stub.process import announce, imports_that_stay
from tritonembed_engine.token_ids import ID_MASK, ONE_TOKEN, TYPE_BIT, Spans, TokenIds

GROUPING = {"cpu": Grouping(64, 1024), "cuda": Grouping(4096, 65536)}
"""On a CPU a pass costs little, and the results of 1,024 tokens stay in its cache. On a GPU a pass of a few tokens
takes as long as a pass of thousands."""


class TransformersExecutor:
    """Runs an encoder of transformers; `launch` returns when the batch is done."""

    name = "transformers"
    depth = 1
    refused_id: int | None = None
    # See DirectExecutor.
    on_any_thread = False

    def __init__(
        self,
        model: torch.nn.Module,
        pooler: Pooler,
        max_batch_tokens: int,
        max_batch_sentences: int,
        padding_id: int,
        grouping: Grouping,
        heads: TokenHeads | None = None,
        has_types: bool = False,
        unseen: int | None = None,
    ) -> None:
        """padding_id: fills rows; any id will do, because padding is masked. heads: the model's outputs per token.
        has_types: whether ids may have TYPE_BIT. unseen: an id that other tokens do not attend to at the end of a
        sentence (ColBERT's query expansion)."""
        self._model: torch.nn.Module | None = model
        self.dtype = dtype_name(model)
        self._device = next(model.parameters()).device
        self.adapters = Adapters(model, next(model.parameters()).dtype, self._device)
        self._pooler = pooler
        self._padding_id = padding_id
        self._grouping = grouping
        self._has_types = has_types
        self._unseen = unseen
        self.pools_spans = pooler.pools_spans
        self._heads = heads or TokenHeads.none()
        self.token_dimensions = self._heads.dimensions
        self.max_batch_tokens = max_batch_tokens
        self.max_batch_sentences = max_batch_sentences
        self.dimensions = int(self.launch(ONE_TOKEN).result().shape[1])

    @torch.inference_mode()
    def launch(
        self,
        sentences: TokenIds,
        skips: Sequence[int] | None = None,
        spans: Spans | None = None,
        choices: Choices | None = None,
        adapted: Adapted = (),
    ) -> Pending:
        """Compute the batch, one forward pass per group."""
        groups = self._groups(sentences, adapted)
        if choices:
            return self._with_tokens(sentences, groups, skips, spans, choices)
        of_groups = [None if spans is None else [spans.cut(row, row + 1) for row in group.rows] for group in groups]
        parts = [self._embed(group, skips, cut) for group, cut in zip(groups, of_groups, strict=True)]
        rows = [group.rows if spans is None else spans.rows_of(group.rows) for group in groups]
        vectors = torch.empty((sum(map(len, rows)), parts[0].shape[1]), dtype=torch.float32)
        for places, part in zip(rows, parts, strict=True):
            vectors[torch.from_numpy(places)] = part.cpu()
        return Ready(vectors.numpy())

    def _groups(self, sentences: TokenIds, adapted: Adapted) -> list[PaddedGroup]:
        """The groups of a batch. All sentences of a group have the same adapter, or no adapter."""
        parts: list[tuple[str | None, int, int]] = []
        for adapter, first, end in (*adapted, (None, len(sentences), len(sentences))):
            parts += [(None, parts[-1][2] if parts else 0, first), (adapter, first, end)]
        return [
            replace(group, rows=group.rows + first, adapter=adapter)
            for adapter, first, end in parts
            if first < end
            for group in self._grouping.groups(sentences.cut(first, end), self._padding_id)
        ]

    def _with_tokens(
        self,
        sentences: TokenIds,
        groups: Sequence[PaddedGroup],
        skips: Sequence[int] | None,
        spans: Spans | None,
        choices: Choices,
    ) -> Pending:
        """The vectors and the outputs per token, from the states of all groups in the order of the batch."""
        starts = np.cumsum(sentences.lengths, dtype=np.int64) - sentences.lengths
        parts = [self._hidden(group) for group in groups]
        hidden = torch.empty((sentences.tokens, parts[0].shape[1]), dtype=parts[0].dtype, device=self._device)
        for group, part in zip(groups, parts, strict=True):
            places = [np.arange(starts[row], starts[row] + sentences.lengths[row]) for row in group.rows]
            hidden[torch.from_numpy(np.concatenate(places)).to(self._device)] = part
        if spans is not None:
            vectors = self._pooler.of_spans(hidden, spans.places(sentences.lengths)).cpu().numpy()
            return Ready(vectors, self._heads(hidden, sentences, choices))
        cu_seqlens = torch.from_numpy(np.append(starts, sentences.tokens).astype(np.int32)).to(self._device)
        begins = None
        if skips is not None:
            begins = cu_seqlens[:-1] + torch.tensor(skips, dtype=torch.int32, device=self._device)
        vectors = self._pooler(hidden, cu_seqlens, begins).cpu().numpy()
        return Ready(vectors, self._heads(hidden, sentences, choices))

    def _embed(self, group: PaddedGroup, skips: Sequence[int] | None, spans: Sequence[Spans] | None) -> torch.Tensor:
        """float32 [sentences or spans of the group, dimensions], on the model's device."""
        if not self._pooler.pools:
            return self._pooler.finish(self._forward(group).text_embeds)
        hidden = self._hidden(group)
        cu_seqlens = torch.from_numpy(group.cu_seqlens)
        if spans is not None:
            lengths = group.cu_seqlens[1:] - group.cu_seqlens[:-1]
            return self._pooler.of_spans(hidden, Spans.concatenate(spans).places(lengths))
        begins = None
        if skips is not None:
            begins = (cu_seqlens[:-1] + torch.tensor([skips[row] for row in group.rows], dtype=torch.int32)).to(
                self._device
            )
        return self._pooler(hidden, cu_seqlens.to(self._device), begins)

    def _forward(self, group: PaddedGroup) -> Any:
        """The model's output for a rectangle of tokens."""
        assert self._model is not None
        seen = group.mask if self._unseen is None else group.seen(self._unseen)
        ids = torch.from_numpy(group.ids).to(self._device)
        types = {"token_type_ids": ids >> TYPE_BIT} if self._has_types else {}
        rows = [] if group.adapter is None else [(group.adapter, 0, group.ids.size)]
        with self.adapters.applied(rows):
            return self._model(
                input_ids=ids & ID_MASK if types else ids,
                attention_mask=None if seen.all() else torch.from_numpy(seen).to(self._device, torch.int64),
                **types,
            )

    def _hidden(self, group: PaddedGroup) -> torch.Tensor:
        """Hidden states of the group's sentences without padding: [tokens, hidden size]."""
        hidden: torch.Tensor = self._forward(group).last_hidden_state.flatten(0, 1)
        if group.has_padding:
            hidden = hidden[torch.from_numpy(group.mask).flatten().nonzero()[:, 0].to(self._device)]
        return hidden

    def explain(self, error: Exception) -> EmbedError:
        """See `base.explain`."""
        return explain(error)

    def rest(self) -> None:
        """Return freed memory to the system."""
        return_free_memory()

    def close(self) -> None:
        """Free the model's memory."""
        self.adapters.close()
        self._model = None


def load_encoder(
    settings: ModelSettings, files: ModelFiles, device: str, classes: Mapping[str, str] = ENCODERS
) -> torch.nn.Module:
    """The model in transformers, in the type that the settings ask for.

    device: "cpu" or "cuda". classes: transformers' class of each family that is served. Raises ModelError, in one line,
    if transformers' own classes can't serve it as the settings ask.
    """
    config = read_object(files.transformer / "config.json")
    model: torch.nn.Module
    class_name = classes.get(files.model_type)
    if class_name is None and files.model_type not in (JINA_BERT, JINA_V3):
        raise ModelError(f"{files.name}: the transformers executor does not know {files.model_type} models")
    if config.get("quantization_config"):
        raise ModelError(f"{files.name}: the transformers executor has no quantized weights")
    refuse_arguments(settings, files, "transformers")
    announce("fetching the weights")
    folder = weights_folder(settings.model, settings.revision, files.transformer, files.is_local)
    announce("loading the weights")
    dtype = getattr(torch, asked_dtype(settings, config, device, "transformers"))
    try:
        if files.model_type == JINA_V3:
            model = _jina_v3(folder, config, dtype)
        elif class_name is None:
            model = load_jina_bert(folder, config, dtype)
        else:
            model = _from_transformers(class_name, folder, config, files, dtype)
    except ModelError as error:
        raise ModelError(f"{files.name}: {error}") from None
    except Exception as error:
        raise ModelError(f"transformers could not load the model: {reason_of(error, str(folder))}") from error
    return model.eval().requires_grad_(False).to(device)


def _jina_v3(folder: Path, config: dict[str, Any], dtype: torch.dtype) -> torch.nn.Module:
    with imports_that_stay():
        from transformers import JinaEmbeddingsV3Config, JinaEmbeddingsV3Model
    own = JinaEmbeddingsV3Config(**as_transformers_has_it(config))
    with torch.device("meta"):
        model = JinaEmbeddingsV3Model(own, add_pooling_layer=False)
    expected, state = model.state_dict(), base_state(folder)
    info = {
        "missing_keys": expected.keys() - state.keys(),
        "mismatched_keys": [
            (name,) for name, tensor in expected.items() if name in state and state[name].shape != tensor.shape
        ],
    }
    check_complete(info)
    loaded = JinaEmbeddingsV3Model(own, add_pooling_layer=False)
    loaded.load_state_dict({name: state[name] for name in expected})
    loaded.config.return_dict = True
    made: torch.nn.Module = loaded.to(dtype)
    return made


def _from_transformers(
    class_name: str, folder: Path, config: dict[str, Any], files: ModelFiles, dtype: torch.dtype
) -> torch.nn.Module:
    with imports_that_stay():
        import transformers

        model_class: Any = getattr(transformers, class_name)
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    checkpoint_files(folder)
    tower = text_tower(config, files.folder)
    if tower:
        loaded_config = model_class.config_class(**tower)
    elif files.model_type == NEW:
        loaded_config = model_class.config_class(**as_gte(config, "transformers"))
    else:
        loaded_config = model_class.config_class.from_pretrained(folder)
        config_for_reference(loaded_config, config)
    model, info = model_class.from_pretrained(
        folder,
        dtype=dtype,
        output_loading_info=True,
        local_files_only=True,
        # `check_complete` names the tensors.
        ignore_mismatched_sizes=True,
        config=loaded_config,
    )
    check_complete(info)
    model.config.return_dict = True
    loaded: torch.nn.Module = model
    return loaded


def dtype_name(model: torch.nn.Module) -> str:
    """The type that a model computes in, by torch's name, such as "float32"."""
    return str(next(model.parameters()).dtype).removeprefix("torch.")
