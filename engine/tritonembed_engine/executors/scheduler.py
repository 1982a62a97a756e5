"""The scheduler executor: vLLM's public API, in process. Serves whatever vLLM can pool."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from tritonembed_engine.errors import EmbedError
from tritonembed_engine.executors.base import Pending, Ready
from tritonembed_engine.executors.faults import explain

if TYPE_CHECKING:
    from vllm import LLM


class SchedulerExecutor:
    """`LLM.encode` over one batch at a time; vLLM's scheduler places the sentences (60-100 µs each, in Python)."""

    name = "scheduler"
    depth = 1
    on_any_thread = False

    def __init__(self, llm: "LLM", max_batch_tokens: int, max_batch_sentences: int) -> None:
        from vllm import PoolingParams

        self._llm: LLM | None = llm
        # Raw vectors: normalisation depends on the request, so `vectors.py` does it.
        self._parameters = PoolingParams(use_activation=False, task="embed")
        self.max_batch_tokens = max_batch_tokens
        self.max_batch_sentences = max_batch_sentences
        self.dimensions = int(self.launch([np.ones(1, dtype="<i4").tobytes()]).result().shape[1])

    def launch(self, sentences: Sequence[bytes]) -> Pending:
        """Compute the batch; returns when it is done."""
        assert self._llm is not None
        prompts = [{"prompt_token_ids": np.frombuffer(ids, dtype="<i4").tolist()} for ids in sentences]
        outputs = self._llm.encode(prompts, self._parameters, pooling_task="embed", use_tqdm=False)
        return Ready(np.stack([output.outputs.data.float().numpy() for output in outputs]))

    def explain(self, error: Exception) -> EmbedError:
        """See `faults`."""
        return explain(error)

    def rest(self) -> None:
        """Nothing to give back."""

    def close(self) -> None:
        """Free the model's memory."""
        self._llm = None
