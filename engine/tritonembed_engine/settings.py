"""`model.json`: the one source of what both python models load. Validated once, when a model is initialised."""

import json
import os
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from tritonembed_engine.errors import ModelError

MODEL_JSON = "model.json"
MODEL_VARIABLE = "TRITONEMBED_MODEL"
BATCHES_AHEAD_OF_GPU = 3
"""By measurement on an H200: with 2 it is busy for 80 % of the time, with 3 for all of it."""

MOST_BATCH_TOKENS = 262_144
"""Kernels count elements in 32 bits, up to 8 x 1024 wide; a tenth of it keeps every GPU busy."""


DETERMINISTIC_BATCH_TOKENS = 8192


class KernelSettings(BaseModel):
    """Switches of our own CUDA kernels; off leaves vLLM's."""

    model_config = ConfigDict(extra="forbid")

    attention: bool = True
    add_layer_norm: bool = True
    embed_layer_norm: bool = True
    gelu_epilogue: bool = True
    mean_pool: bool = True
    fp8: bool = True
    """Quantization fused into attention, LayerNorm and the product with GELU, for a model that vLLM loads in fp8."""


class GraphSettings(BaseModel):
    """CUDA graphs, captured when a replica starts."""

    model_config = ConfigDict(extra="forbid")

    enabled: bool = True
    seconds: float = Field(default=30, ge=0)
    """No further graph is captured after this long."""

    memory_mib: int = Field(default=2048, ge=0)
    """No further graph is captured once they take this much of the GPU."""


class EngineSettings(BaseModel):
    """Settings of our engine, beside vLLM's own arguments."""

    model_config = ConfigDict(extra="forbid")

    executor: Literal["auto", "direct", "scheduler"] = "auto"
    """Which executor runs the model; auto takes the direct one where it serves the model and agrees with vLLM."""

    max_batch_tokens: int | None = Field(default=None, ge=1, le=MOST_BATCH_TOKENS, strict=True)
    """Tokens in one forward pass; None: on a GPU measured when the model is loaded, 4096 on a CPU."""

    reference: str = Field(default="auto", min_length=1)
    """What the vectors are held against before they are served: `auto`, transformers in float32; `off`, nothing; else
    a file of sentence-transformers' vectors (see `reference/given.py`)."""

    deterministic: bool = False
    """One sentence a forward pass, in shapes that depend on its length alone: the same text gives the same bits."""

    kernels: KernelSettings = Field(default_factory=KernelSettings)
    graphs: GraphSettings = Field(default_factory=GraphSettings)

    max_request_bytes: int = Field(default=32 * 1024 * 1024, ge=1)
    """Bytes of text in one request."""

    batches_ahead: int | None = Field(default=None, ge=0)
    """Triton batches of large requests that a replica takes before the first of them is answered (see `senders`); None:
    3 on a GPU, 0 on a CPU, which has no time of its own to fill. Requests that are more than one batch always go so."""

    queue: Literal["triton", "engine"] = "triton"
    """Where requests wait for their turn. `engine`: they are taken at once, and what has to wait is answered through
    response senders; for a repository without limits in Triton."""

    max_waiting_requests: int = Field(default=4096, ge=1)
    max_waiting_sentences: int = Field(default=65536, ge=1024)
    """What waits in the engine before it sheds load."""

    @model_validator(mode="after")
    def _fix_shapes(self) -> "EngineSettings":
        if self.deterministic and self.max_batch_tokens is None:
            # A budget that is measured would give other CUDA graphs at another start.
            self.max_batch_tokens = DETERMINISTIC_BATCH_TOKENS
        return self

    def batches_ahead_on(self, device: str) -> int | None:
        """`batches_ahead` for "cpu" or "cuda"; None: any number."""
        if self.queue == "engine":
            return None
        return self.batches_ahead if self.batches_ahead is not None else {"cuda": BATCHES_AHEAD_OF_GPU}.get(device, 0)


class ModelSettings(BaseModel):
    """The contents of model.json."""

    model_config = ConfigDict(extra="forbid")

    model: str = Field(min_length=1)
    """A name on the Hugging Face hub, or a folder."""

    vllm: dict[str, Any] = Field(default_factory=dict)
    """vLLM engine arguments by their Python names (`dtype`, `quantization`, `tensor_parallel_size`, …)."""

    engine: EngineSettings = Field(default_factory=EngineSettings)

    @field_validator("vllm")
    @classmethod
    def _check_max_model_len(cls, vllm: dict[str, Any]) -> dict[str, Any]:
        length = vllm.get("max_model_len")
        if length is not None and (type(length) is not int or length < 1):
            raise ValueError("max_model_len is a number of tokens")
        return vllm

    @property
    def max_model_len(self) -> int | None:
        """The longest text in tokens that vLLM is told to serve, if it is told."""
        return self.vllm.get("max_model_len")

    @property
    def revision(self) -> str | None:
        """The model's revision on the hub, if vLLM is given one."""
        return self.vllm.get("revision")


def read_settings(repository: str | Path) -> ModelSettings:
    """Settings of a model repository; the variable TRITONEMBED_MODEL overrides the model.

    Raises ModelError, with the field at fault, for a file that is missing or wrong.
    """
    try:
        raw = json.loads((Path(repository) / MODEL_JSON).read_text(encoding="utf-8"))
        settings = ModelSettings.model_validate(raw)
    except FileNotFoundError:
        raise ModelError(f"the model repository has no {MODEL_JSON}") from None
    except UnicodeDecodeError:
        raise ModelError(f"{MODEL_JSON} is not UTF-8") from None
    except json.JSONDecodeError as error:
        raise ModelError(f"{MODEL_JSON} is not JSON (line {error.lineno})") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ": ".join([MODEL_JSON, ".".join(str(part) for part in first["loc"])]).removesuffix(": ")
        raise ModelError(f"{where}: {first['msg']}") from None
    model = os.environ.get(MODEL_VARIABLE)
    return settings.model_copy(update={"model": model}) if model else settings
