"""Every touch of vLLM's internals, in one place. Held against vLLM 0.25.1 (CUDA) and 0.32.0 (CPU).

What is used: the model runner of an in-process engine, its `model`, `vllm_config`, `device` and `attn_groups`;
`CommonAttentionMetadata` and each group's metadata builder; `set_forward_context`, `set_current_vllm_config`. Where
any of it has moved, `open_model` raises DirectUnavailable, or the first batch fails, and vLLM's own scheduler serves.
And, before a load, the registry of its models' classes.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from vllm import LLM

HELD_AGAINST = ("0.25.1", "0.32.0")


class DirectUnavailable(Exception):
    """The direct executor can't run this model; the message says why, in one line."""


def inspect_in_this_process(architectures: Sequence[str]) -> None:
    """Import a model's classes before vLLM loads it: else it looks at them in a process of its own, for seconds.

    It does that to keep CUDA out of this one, and remembers what it saw in ~/.cache/vllm, which a new container lacks.
    A class that can't be had here is left to vLLM.
    """
    with suppress(Exception):
        from vllm.model_executor.models.registry import ModelRegistry

        for name in architectures:
            ModelRegistry.register_model(name, ModelRegistry.models[name].load_model_cls())


def dtype_of(llm: "LLM") -> str:
    """The type that a model computes in, as torch names it: "float32"."""
    return str(llm.llm_engine.vllm_config.model_config.dtype).removeprefix("torch.")


@dataclass(frozen=True)
class OpenModel:
    """A model that vLLM loaded, taken out of its scheduler.

    model: called with flat `input_ids` and `positions` [tokens], gives hidden states [tokens, hidden].
    quantized: whether products are of 8 bits.
    """

    model: torch.nn.Module
    device: torch.device
    dtype: torch.dtype
    quantized: bool
    _vllm_config: Any
    _builders: list[tuple[Any, list[str]]]
    _llm: Any
    """Kept: vLLM takes its layers' registration back when it is collected, and the next forward fails."""

    def attention(
        self,
        starts: torch.Tensor,
        starts_cpu: torch.Tensor,
        lengths: torch.Tensor,
        places: torch.Tensor,
        tokens: int,
        longest: int,
    ) -> dict[str, Any]:
        """vLLM's attention metadata for a flat batch, by layer.

        starts: int32 [sentences + 1], on the device and on the host. lengths: int32 [sentences]. places: int64
        [tokens], of each token in its sentence.
        """
        from vllm.v1.attention.backend import CommonAttentionMetadata

        sentences = len(lengths)
        common = CommonAttentionMetadata(
            query_start_loc=starts,
            query_start_loc_cpu=starts_cpu,
            seq_lens=lengths,
            num_reqs=sentences,
            num_actual_tokens=tokens,
            max_query_len=longest,
            max_seq_len=longest,
            # Encoder-only attention has no cache; these two only have to be there.
            block_table_tensor=torch.zeros((sentences, 1), dtype=torch.int32, device=self.device),
            slot_mapping=torch.zeros(tokens, dtype=torch.int64, device=self.device),
            causal=False,
            positions=places,
        )
        metadata: dict[str, Any] = {}
        for builder, layers in self._builders:
            built = builder.build(0, common)
            metadata.update(dict.fromkeys(layers, built))
        return metadata

    def config(self) -> AbstractContextManager[None]:
        """What has to be entered around code that asks vLLM for one of its layers' classes."""
        from vllm.config import set_current_vllm_config

        context: AbstractContextManager[None] = set_current_vllm_config(self._vllm_config)
        return context

    def forward_context(self, metadata: dict[str, Any], tokens: int) -> AbstractContextManager[None]:
        """What has to be entered around a call of `model`."""
        from vllm.forward_context import set_forward_context

        context: AbstractContextManager[None] = set_forward_context(metadata, self._vllm_config, num_tokens=tokens)
        return context


def open_model(llm: "LLM") -> OpenModel:
    """Take the model out of an in-process vLLM. Raises DirectUnavailable."""
    try:
        return _open(llm)
    except DirectUnavailable:
        raise
    except Exception as error:
        import vllm

        reason = f"vLLM {vllm.__version__} differs from {' and '.join(HELD_AGAINST)} inside ({type(error).__name__})"
        raise DirectUnavailable(reason) from error


def _open(llm: "LLM") -> OpenModel:
    from vllm.v1.kv_cache_interface import EncoderOnlyAttentionSpec

    runner = llm.collective_rpc(lambda worker: worker.model_runner)[0]
    parallel = runner.vllm_config.parallel_config
    if parallel.tensor_parallel_size > 1 or parallel.pipeline_parallel_size > 1:
        raise DirectUnavailable("the model is spread over several GPUs")
    groups = runner.kv_cache_config.kv_cache_groups
    if not groups or not all(isinstance(group.kv_cache_spec, EncoderOnlyAttentionSpec) for group in groups):
        raise DirectUnavailable("the model is not encoder-only")
    builders = [
        (group.get_metadata_builder(), group.layer_names) for per_cache in runner.attn_groups for group in per_cache
    ]
    model_config = runner.vllm_config.model_config
    return OpenModel(
        model=runner.model,
        device=runner.device,
        dtype=model_config.dtype,
        # Weights of fewer bits alone are unpacked: such products are of 16 bits.
        quantized=any(weight.dtype in (torch.float8_e4m3fn, torch.int8) for weight in runner.model.parameters()),
        _vllm_config=runner.vllm_config,
        _builders=builders,
        _llm=llm,
    )
