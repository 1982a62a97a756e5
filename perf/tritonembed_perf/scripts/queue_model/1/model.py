"""Sleeps for as long as the text is, then answers the same unit vector for every sentence."""

import os
import time
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

BYTES_PER_SECOND = float(os.environ["QUEUE_MODEL_BYTES_PER_SECOND"])
VECTOR = np.full(int(os.environ.get("QUEUE_MODEL_DIMENSIONS", "16")), 0.25, dtype="<f4").tobytes()


class TritonPythonModel:
    """One queue."""

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer each request when its own work, and that before it, would be done."""
        responses = []
        for request in requests:
            texts = pb_utils.get_input_tensor_by_name(request, "text").as_numpy().ravel()
            time.sleep(sum(map(len, texts)) / BYTES_PER_SECOND)
            rows = np.empty((len(texts), 1), dtype=object)
            rows[:, 0] = VECTOR
            tokens = np.array([[len(text) // 5] for text in texts], dtype=np.int32)
            tensors = [pb_utils.Tensor("embedding", rows), pb_utils.Tensor("num_tokens", tokens)]
            responses.append(pb_utils.InferenceResponse(output_tensors=tensors))
        return responses
