"""The scheduler executor: vLLM's public API, in process. Serves whatever vLLM can pool."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from tritonembed_engine.errors import EmbedError
from tritonembed_engine.executors.base import Pending, Ready
from tritonembed_engine.executors.faults import explain
from tritonembed_engine.executors.pooling import Pooler
from tritonembed_engine.model.modules import PoolingMode
from tritonembed_engine.model.steps import Steps

if TYPE_CHECKING:
    from vllm import LLM

VLLM_POOLINGS: dict[PoolingMode, str] = {"cls": "CLS", "mean": "MEAN", "lasttoken": "LAST"}
"""Those that vLLM has, under its names; for the others it gives every token's vector, and we pool."""


def pools_in_vllm(modes: Sequence[PoolingMode], include_prompt: bool) -> bool:
    """Whether vLLM can do all of the pooling. It is loaded for one of the two tasks, "embed" or "token_embed"."""
    return len(modes) == 1 and modes[0] in VLLM_POOLINGS and include_prompt


class SchedulerExecutor:
    """`LLM.encode` over one batch at a time; vLLM's scheduler places the sentences (60-100 µs each, in Python)."""

    name = "scheduler"
    depth = 1
    on_any_thread = False

    def __init__(
        self,
        llm: "LLM",
        max_batch_tokens: int,
        max_batch_sentences: int,
        modes: Sequence[PoolingMode] = ("mean",),
        steps: Steps | None = None,
        padding_id: int | None = None,
        include_prompt: bool = True,
    ) -> None:
        """modes, steps: the model's pooling and what follows it. padding_id: see `flatten`; vLLM counts it.
        include_prompt: whether no launch has `skips`."""
        from vllm import PoolingParams

        self._llm: LLM | None = llm
        self.refused_id = padding_id
        self._steps = steps or Steps(())
        self._pooler = Pooler(modes, self._steps)
        self._by_vllm = pools_in_vllm(modes, include_prompt)
        # Raw vectors: normalisation depends on the request, so `vectors.py` does it.
        self._sentence = PoolingParams(use_activation=False, task="embed")
        self._token = PoolingParams(use_activation=False, task="token_embed")
        self.max_batch_tokens = max_batch_tokens
        self.max_batch_sentences = max_batch_sentences
        self.dimensions = int(self.launch([np.ones(1, dtype="<i4").tobytes()]).result().shape[1])

    @torch.inference_mode()
    def launch(self, sentences: Sequence[bytes], skips: Sequence[int] | None = None) -> Pending:
        """Compute the batch; returns when it is done."""
        if self._by_vllm:
            return Ready(self._steps(torch.stack(self._encode(sentences, "embed"))).numpy())
        tokens = self._encode(sentences, "token_embed")
        starts = torch.zeros(len(tokens) + 1, dtype=torch.int32)
        starts[1:] = torch.cumsum(torch.tensor([len(one) for one in tokens]), 0)
        begins = None if skips is None else starts[:-1] + torch.tensor(skips, dtype=torch.int32)
        return Ready(self._pooler(torch.cat(tokens), starts, begins).numpy())

    def _encode(self, sentences: Sequence[bytes], task: str) -> list[torch.Tensor]:
        """float32 [hidden size], or of each token, by sentence."""
        assert self._llm is not None
        prompts = [{"prompt_token_ids": np.frombuffer(ids, dtype="<i4").tolist()} for ids in sentences]
        parameters = self._sentence if task == "embed" else self._token
        outputs = self._llm.encode(prompts, parameters, pooling_task=task, use_tqdm=False)
        return [output.outputs.data.float().cpu() for output in outputs]

    def explain(self, error: Exception) -> EmbedError:
        """See `faults`."""
        return explain(error)

    def rest(self) -> None:
        """Nothing to give back."""

    def close(self) -> None:
        """Free the model's memory."""
        self._llm = None
