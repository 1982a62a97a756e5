"""All uses of vLLM's internals, except for its BERT classes in `kernels/`. For vLLM 0.25.1 (CUDA) and 0.32.0 (CPU).

They are the model runner of an in-process engine, its `model`, `vllm_config`, `device`, `attn_groups` and `kv_caches`;
`CommonAttentionMetadata` and each group's metadata builder; the attention layers and their implementations;
`set_forward_context`, `set_current_vllm_config`; the group of tensor parallel ranks; and, before a load, the registry
of model classes. If any of it has moved, `open_model` raises DirectUnavailable or the first batch fails, and vLLM's own
scheduler serves.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from vllm import LLM

HELD_AGAINST = ("0.25.1", "0.32.0")
OWN_LAUNCHER = "external_launcher"
"""vLLM's `distributed_executor_backend` for processes that another program starts, such as torchrun: a rank in each."""


class DirectUnavailable(Exception):
    """The direct executor can't run this model; the message is the reason, in one line."""


def inspect_in_this_process(architectures: Sequence[str]) -> None:
    """Import a model's classes before vLLM loads it. Else vLLM inspects them in a child process, which takes seconds.

    vLLM does so to keep CUDA out of this process. It caches the result in ~/.cache/vllm, which a new container lacks.
    Classes that can't be imported here are left to vLLM.
    """
    with suppress(Exception):
        from vllm.model_executor.models.registry import ModelRegistry

        for name in architectures:
            ModelRegistry.register_model(name, ModelRegistry.models[name].load_model_cls())


def dtype_of(llm: "LLM") -> str:
    """The type that a model computes in, by torch's name, such as "float32"."""
    return str(llm.llm_engine.vllm_config.model_config.dtype).removeprefix("torch.")


class Exchanged(AbstractContextManager[None]):
    """Gives attributes other values while entered. changes: object, attribute, value."""

    def __init__(self, changes: Sequence[tuple[Any, str, Any]]) -> None:
        self._changes = [(owner, name, getattr(owner, name), value) for owner, name, value in changes]

    def __enter__(self) -> None:
        for owner, name, _, value in self._changes:
            setattr(owner, name, value)

    def __exit__(self, *_: object) -> None:
        for owner, name, before, _ in self._changes:
            setattr(owner, name, before)


@dataclass(frozen=True)
class OpenModel:
    """A model that vLLM loaded, for use without its scheduler.

    model: from flat `input_ids` and `positions` [tokens] to hidden states [tokens, hidden]. quantized: whether it
    computes products in 8 bits. causal: whether a token attends only to itself and the tokens before it. ranks: the
    number of processes that hold a part of it.
    """

    model: torch.nn.Module
    device: torch.device
    dtype: torch.dtype
    quantized: bool
    causal: bool
    ranks: int
    _vllm_config: Any
    _builders: list[tuple[Any, list[str]]]
    _without_cache: AbstractContextManager[None]
    """While entered, attention reads the keys and values of the batch, not those of vLLM's cache."""
    _runner: Any
    _llm: Any
    """Kept, because vLLM unregisters its layers when it is collected, and the next forward would fail."""

    def attention(
        self,
        cu_seqlens: torch.Tensor,
        cu_seqlens_cpu: torch.Tensor,
        lengths: torch.Tensor,
        places: torch.Tensor,
        tokens: int,
        longest: int,
    ) -> dict[str, Any]:
        """vLLM's attention metadata for a flat batch, by layer.

        cu_seqlens: int32 [sentences + 1], on the device and on the host. lengths: int32 [sentences]. places: int64
        [tokens], of each token in its sentence.
        """
        from vllm.v1.attention.backend import CommonAttentionMetadata

        sentences = len(lengths)
        metadata: dict[str, Any] = {}
        for builder, layers in self._builders:
            common = CommonAttentionMetadata(
                query_start_loc=cu_seqlens,
                query_start_loc_cpu=cu_seqlens_cpu,
                seq_lens=lengths,
                num_reqs=sentences,
                num_actual_tokens=tokens,
                max_query_len=longest,
                max_seq_len=longest,
                # There is no cache, but these two fields have to exist. On a CPU each builder writes its own slots.
                block_table_tensor=torch.zeros((sentences, 1), dtype=torch.int32, device=self.device),
                slot_mapping=torch.zeros(tokens, dtype=torch.int64, device=self.device),
                causal=self.causal,
                positions=places,
            )
            with self._without_cache:
                built = builder.build(0, common)
            metadata.update(dict.fromkeys(layers, built))
        return metadata

    def config(self) -> AbstractContextManager[None]:
        """Context for code that makes or inspects vLLM's layers."""
        from vllm.config import set_current_vllm_config

        context: AbstractContextManager[None] = set_current_vllm_config(self._vllm_config)
        return context

    @contextmanager
    def forward_context(self, metadata: dict[str, Any], tokens: int) -> Iterator[None]:
        """Context for a call of `model`."""
        from vllm.forward_context import set_forward_context

        # vLLM gets no slots, so it writes nothing into its cache.
        with self._without_cache, set_forward_context(metadata, self._vllm_config, num_tokens=tokens):
            yield

    def capturing(self) -> AbstractContextManager[Any]:
        """Context for capturing CUDA graphs: vLLM's all-reduce exchanges the graphs' addresses between ranks."""
        if self.ranks == 1:
            return nullcontext()
        from vllm.distributed.parallel_state import graph_capture

        context: AbstractContextManager[Any] = graph_capture(device=self.device)
        return context

    def agree(self, value: bool) -> bool:
        """The value of rank 0. Every rank has to call it."""
        if self.ranks == 1:
            return value
        from vllm.distributed.parallel_state import get_tp_group

        return bool(get_tp_group().broadcast_object(value))

    def free_cache(self) -> None:
        """Free vLLM's KV cache. Its scheduler can't run a causal model afterwards."""
        if self.causal:
            for _, layers in self._builders:
                for name in layers:
                    _layer(self._runner, name).kv_cache = torch.tensor([])
            self._runner.kv_caches.clear()
            if self.device.type == "cuda":
                torch.cuda.empty_cache()


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
    runner = llm.collective_rpc(lambda worker: worker.model_runner)[0]
    parallel = runner.vllm_config.parallel_config
    if parallel.world_size > 1 and parallel.distributed_executor_backend != OWN_LAUNCHER:
        raise DirectUnavailable("vLLM spreads the model over processes of its own")
    groups = [group for per_cache in runner.attn_groups for group in per_cache]
    builders = [(group.get_metadata_builder(), group.layer_names) for group in groups]
    causal = _is_causal([group.kv_cache_spec for group in groups])
    model_config = runner.vllm_config.model_config
    changes = _changes_without_cache(runner, builders, model_config.dtype) if causal else []
    return OpenModel(
        model=runner.model,
        device=runner.device,
        dtype=model_config.dtype,
        # Weight-only quantization unpacks the weights: its products are of 16 bits.
        quantized=any(weight.dtype in (torch.float8_e4m3fn, torch.int8) for weight in runner.model.parameters()),
        causal=causal,
        ranks=parallel.world_size,
        _vllm_config=runner.vllm_config,
        _builders=builders,
        _without_cache=Exchanged(changes),
        _runner=runner,
        _llm=llm,
    )


def _is_causal(specs: Sequence[Any]) -> bool:
    """Whether attention is causal, by the specifications of vLLM's caches. Raises DirectUnavailable for other kinds."""
    from vllm.v1.kv_cache_interface import EncoderOnlyAttentionSpec, FullAttentionSpec, SlidingWindowSpec

    # Subclasses are other kinds: latent attention (MLA), sinks, and more.
    kinds = {type(spec) for spec in specs}
    if kinds == {EncoderOnlyAttentionSpec}:
        return False
    if kinds and kinds <= {FullAttentionSpec, SlidingWindowSpec}:
        return True
    names = ", ".join(sorted(kind.__name__.removesuffix("Spec") for kind in kinds)) or "none"
    raise DirectUnavailable(f"its attention is not only of the kinds that need no cache here ({names})")


def _changes_without_cache(
    runner: Any, builders: Sequence[tuple[Any, Sequence[str]]], dtype: torch.dtype
) -> list[tuple[Any, str, Any]]:
    """The changes (see Exchanged) that make causal attention read the batch's own keys and values, as an encoder's
    does.

    Raises DirectUnavailable for a layer or a backend for which that is not known to be right.
    """
    from vllm.model_executor.layers.attention import Attention
    from vllm.v1.attention.backend import AttentionType

    changes: list[tuple[Any, str, Any]] = []
    for builder, names in builders:
        for name in names:
            layer = _layer(runner, name)
            if type(layer) is not Attention or layer.attn_type != AttentionType.DECODER:
                raise DirectUnavailable(f"a layer of the kind {type(layer).__name__} needs vLLM's cache")
            if layer.kv_sharing_target_layer_name is not None:
                raise DirectUnavailable("layers share keys and values through vLLM's cache")
            if layer.kv_cache_torch_dtype != dtype:
                raise DirectUnavailable("keys and values are rounded in vLLM's cache (kv_cache_dtype)")
            changes.append((layer.impl, "attn_type", AttentionType.ENCODER_ONLY))
            backend = type(layer.impl).__name__
            if backend == "FlashAttentionImpl":
                # Encoder attention is not causal, but a window without tokens to the right is. Sliding windows have it
                # already.
                if layer.impl.sliding_window == (-1, -1):
                    changes.append((layer.impl, "sliding_window", (-1, 0)))
            elif backend != "CPUAttentionBackendImpl":
                raise DirectUnavailable(f"causal attention without a cache is not known of {backend}")
        if hasattr(builder, "is_encoder_only_attention"):
            # On a CPU keys and values go through a cache that each batch makes for itself.
            changes.append((builder, "is_encoder_only_attention", True))
    return changes


def _layer(runner: Any, name: str) -> Any:
    return runner.vllm_config.compilation_config.static_forward_context[name]
