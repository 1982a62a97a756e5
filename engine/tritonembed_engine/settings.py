"""`model.json`: the settings of both python models. Validated once, when a model is initialised."""

import json
import os
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from tritonembed_engine.errors import ModelError
from tritonembed_engine.instructions import PLACE
from tritonembed_protocol.limits import MAX_BATCH_SIZE, MAX_REQUEST_BYTES

MODEL_JSON = "model.json"
MODEL_VARIABLE = "TRITONEMBED_MODEL"
BATCHES_AHEAD_OF_GPU = 3
"""Measured on an H200: with 2 batches it is busy for 80 % of the time, with 3 all the time."""

MOST_BATCH_TOKENS = 262_144
"""Kernels count elements in 32 bits, up to 8 x 1024 wide. A tenth of this keeps every GPU busy."""

DETERMINISTIC_BATCH_TOKENS = 8192


class KernelSettings(BaseModel):
    """Switches of our own CUDA kernels; without them vLLM's run."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    attention: bool = True
    """Attention over sentences of up to 512 tokens; of causal models, of up to 128."""

    add_layer_norm: bool = True
    """Residual add and LayerNorm as one kernel."""

    embed_layer_norm: bool = True
    """The sum of the embeddings and its LayerNorm as one kernel."""

    rotary: bool = True
    """Rotary positions and the norms of queries and keys as one kernel."""

    gelu_gate: bool = True
    """GELU times gate as one kernel."""

    gelu_epilogue: bool = True
    """GELU as part of the matrix product before it."""

    mean_pool: bool = True
    """Mean pooling as one kernel."""

    max_pool: bool = True
    """The largest logit of each text, for weights of a vocabulary's ids (SPLADE), as one kernel."""

    pooled_rows: bool = True
    """The last layer computes only the tokens that CLS and last-token pooling read, for a model without outputs per
    token; not with `fp8`."""

    fp8: bool = True
    """Quantization fused into attention, LayerNorm and the product with GELU, for a model that vLLM loads in fp8."""


class GraphSettings(BaseModel):
    """CUDA graphs, captured when a replica starts."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    enabled: bool = True
    """Whether small batches replay graphs."""

    seconds: float = Field(default=30, ge=0)
    """No further graph is captured after this long."""

    memory_mib: int = Field(default=2048, ge=0)
    """No further graph is captured once they take this much of the GPU."""


class EngineSettings(BaseModel):
    """Settings of the engine itself, apart from vLLM's arguments."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    executor: Literal["auto", "direct", "openvino", "scheduler", "transformers"] = "auto"
    """Which executor runs the model; auto takes on a CPU the openvino executor if it is installed and serves the model,
    else the direct executor if it serves the model and agrees with vLLM, and for families that vLLM does not have the
    transformers executor; static embeddings have an executor of their own."""

    max_batch_tokens: int | None = Field(default=None, ge=1, le=MOST_BATCH_TOKENS, strict=True)
    """Tokens per forward pass; None: measured at load on a GPU, 4096 on a CPU."""

    reference: str = Field(default="auto", min_length=1)
    """The reference of the check at load: `auto`, transformers in float32; `off`, none; else a file of
    sentence-transformers' vectors."""

    quantization_quality: float = Field(default=0.98, gt=0, le=1)
    """For int8: the share of the calibration texts' ten nearest neighbours that must be the same as in float32."""

    calibration: str | None = Field(default=None, min_length=1)
    """Texts that int8 is calibrated and judged with: a file of UTF-8 with one per line; None: the project's own."""

    deterministic: bool = False
    """One sentence per forward pass, in shapes that depend on its length alone: the same text gives the same bits."""

    kernels: KernelSettings = Field(default_factory=KernelSettings)
    graphs: GraphSettings = Field(default_factory=GraphSettings)

    instruction_template: str | None = Field(default=None, min_length=1)
    """The prompt for the parameter `instruction`, which stands at `{instruction}`; None: as the model's own prompts or
    its name show."""

    max_request_bytes: int = Field(default=MAX_REQUEST_BYTES, ge=1)
    """Bytes of text in one request."""

    batches_ahead: int | None = Field(default=None, ge=0)
    """Triton batches of large requests that a replica takes before the first of them is answered (see `senders`); None:
    3 on a GPU, 0 on a CPU, which has no idle time to fill. Requests of more than one batch always use senders."""

    queue: Literal["triton", "engine"] = "triton"
    """Where requests wait for their turn. `engine`: it takes them at once and answers those that wait through response
    senders; for a repository without limits in Triton."""

    cache_bytes: int = Field(default=0, ge=0)
    """Bytes of memory for vectors of texts that come again, per replica; 0: nothing is kept or shared."""

    max_waiting_requests: int = Field(default=4096, ge=1)
    """Requests that wait in the engine; it refuses more."""

    max_waiting_sentences: int = Field(default=65536, ge=MAX_BATCH_SIZE)
    """Sentences that wait in the engine; it refuses more."""

    @field_validator("instruction_template")
    @classmethod
    def _check_template(cls, template: str | None) -> str | None:
        if template is not None and template.count(PLACE) != 1:
            raise ValueError(f"it must hold {PLACE} once")
        return template

    @model_validator(mode="after")
    def _fix_shapes(self) -> "EngineSettings":
        if self.deterministic and self.max_batch_tokens is None:
            # A measured budget could give other CUDA graphs at the next start.
            self.max_batch_tokens = DETERMINISTIC_BATCH_TOKENS
        return self

    def batches_ahead_on(self, device: str) -> int | None:
        """`batches_ahead` for "cpu" or "cuda"; None: any number."""
        if self.queue == "engine":
            return None
        return self.batches_ahead if self.batches_ahead is not None else {"cuda": BATCHES_AHEAD_OF_GPU}.get(device, 0)


class ModelSettings(BaseModel):
    """The contents of model.json."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    model: str = Field(min_length=1)
    """A name on the Hugging Face hub, or a folder."""

    vllm: dict[str, Any] = Field(default_factory=dict)
    """vLLM engine arguments by their Python names (`dtype`, `quantization`, `tensor_parallel_size`, …)."""

    engine: EngineSettings = Field(default_factory=EngineSettings)

    adapters: dict[str, str] = Field(default_factory=dict)
    """LoRA adapters by their names: each a folder that peft saved, or a name on the hub."""

    @field_validator("vllm")
    @classmethod
    def _check_max_model_len(cls, vllm: dict[str, Any]) -> dict[str, Any]:
        length = vllm.get("max_model_len")
        if length is not None and (type(length) is not int or length < 1):
            raise ValueError("max_model_len must be a number of tokens")
        return vllm

    @property
    def max_model_len(self) -> int | None:
        """Tokens of the longest text, if vLLM's arguments limit it."""
        return self.vllm.get("max_model_len")

    @property
    def revision(self) -> str | None:
        """The model's revision on the hub, if vLLM's arguments have one."""
        return self.vllm.get("revision")


def read_settings(repository: str | Path, file: str = MODEL_JSON) -> ModelSettings:
    """Settings of a model of the repository; the variable TRITONEMBED_MODEL overrides the first model.

    file: relative to the repository; the first model's by default. Raises ModelError, which names the wrong field, if
    the file is missing or wrong.
    """
    try:
        raw = json.loads((Path(repository) / file).read_text(encoding="utf-8"))
        settings = ModelSettings.model_validate(raw)
    except FileNotFoundError:
        raise ModelError(f"the model repository has no {file}") from None
    except UnicodeDecodeError:
        raise ModelError(f"{file} is not UTF-8") from None
    except json.JSONDecodeError as error:
        raise ModelError(f"{file} is not JSON (line {error.lineno})") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ": ".join([file, ".".join(str(part) for part in first["loc"])]).removesuffix(": ")
        raise ModelError(f"{where}: {first['msg']}") from None
    model = os.environ.get(MODEL_VARIABLE) if file == MODEL_JSON else None
    return settings.model_copy(update={"model": model}) if model else settings
