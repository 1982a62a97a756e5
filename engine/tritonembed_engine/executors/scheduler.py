"""The scheduler executor: vLLM's public API, in process. Serves every model that vLLM can pool."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from tritonembed_engine.errors import EmbedError
from tritonembed_engine.executors.base import Pending, Ready, explain
from tritonembed_engine.executors.pooling import Pooler
from tritonembed_engine.executors.token_heads import TokenHeads
from tritonembed_engine.executors.vllm_internals import dtype_of
from tritonembed_engine.model.modules import Pooling
from tritonembed_engine.model.steps import Steps
from tritonembed_engine.request import Adapted, Choices
from tritonembed_engine.token_ids import ONE_TOKEN, Spans, TokenIds

if TYPE_CHECKING:
    from vllm import LLM


def pooling_in_vllm(poolings: Sequence[Pooling], include_prompt: bool, token_outputs: Sequence[str] = ()) -> str | None:
    """vLLM's name of the pooling; None if vLLM can't do all of it. Then it returns every token's vector, and we pool.

    token_outputs: the model's outputs per token.
    """
    return poolings[0].vllm if len(poolings) == 1 and include_prompt and not token_outputs else None


class SchedulerExecutor:
    """Runs `LLM.encode`, one batch at a time. vLLM's scheduler takes 60 to 100 µs per sentence, in Python."""

    name = "scheduler"
    depth = 1
    on_any_thread = False
    pools_spans = False

    def __init__(
        self,
        llm: "LLM",
        max_batch_tokens: int,
        max_batch_sentences: int,
        poolings: Sequence[Pooling] = (Pooling.MEAN,),
        steps: Steps | None = None,
        padding_id: int | None = None,
        include_prompt: bool = True,
        heads: TokenHeads | None = None,
    ) -> None:
        """poolings, steps: the model's pooling and what follows it. padding_id: see `flatten`; vLLM counts its tokens.
        include_prompt: whether no launch has `skips`. heads: the model's outputs per token."""
        from vllm import PoolingParams

        self._llm: LLM | None = llm
        self.dtype = dtype_of(llm)
        self.refused_id = padding_id
        self._steps = steps or Steps(())
        self._pooler = Pooler(poolings, self._steps)
        self._heads = heads or TokenHeads.none()
        self.token_dimensions = self._heads.dimensions
        self._by_vllm = pooling_in_vllm(poolings, include_prompt, self._heads.names) is not None
        # Raw vectors: normalisation depends on the request, so the engine does it.
        self._sentence = PoolingParams(use_activation=False, task="embed")
        self._token = PoolingParams(use_activation=False, task="token_embed")
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
        """Compute the batch; returns when it is done."""
        assert spans is None, "vLLM pools whole sentences"
        assert not adapted, "vLLM got no adapters"
        if self._by_vllm:
            return Ready(self._steps(torch.stack(self._encode(sentences, "embed"))).numpy())
        tokens = self._encode(sentences, "token_embed")
        cu_seqlens = torch.zeros(len(tokens) + 1, dtype=torch.int32)
        cu_seqlens[1:] = torch.cumsum(torch.tensor([len(one) for one in tokens]), 0)
        begins = None if skips is None else cu_seqlens[:-1] + torch.tensor(skips, dtype=torch.int32)
        hidden = torch.cat(tokens)
        vectors = self._pooler(hidden, cu_seqlens, begins).numpy()
        return Ready(vectors, self._heads(hidden, sentences, choices or {}))

    def _encode(self, sentences: TokenIds, task: str) -> list[torch.Tensor]:
        """Per sentence: float32 [hidden size] or, for `token_embed`, [tokens, hidden size]."""
        assert self._llm is not None
        prompts = [{"prompt_token_ids": ids.tolist()} for ids in sentences]
        parameters = self._sentence if task == "embed" else self._token
        outputs = self._llm.encode(prompts, parameters, pooling_task=task, use_tqdm=False)
        return [output.outputs.data.float().cpu() for output in outputs]

    def explain(self, error: Exception) -> EmbedError:
        """See `base.explain`."""
        return explain(error)

    def rest(self) -> None:
        """Nothing is cached."""

    def close(self) -> None:
        """Free the model's memory."""
        self._llm = None
