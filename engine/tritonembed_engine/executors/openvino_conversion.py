"""Convert a model of transformers for OpenVINO, in a process of its own (see `openvino_graphs`).

Run as `python -m tritonembed_engine.executors.openvino_conversion`.
"""

import json
import sys
import warnings
from pathlib import Path
from typing import Any

import torch

from tritonembed_engine.errors import ModelError, reason_of
from tritonembed_engine.executors.openvino_graphs import STATES, STEPS
from tritonembed_engine.executors.transformers_executor import load_encoder
from tritonembed_engine.model.encoders import IN_OPENVINO
from tritonembed_engine.model.files import ModelFiles, read_model_files
from tritonembed_engine.model.steps import Steps
from tritonembed_engine.settings import ModelSettings


class _States(torch.nn.Module):  # type: ignore[misc]
    """Hidden states [sentences, tokens, hidden size] of a rectangle of tokens."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Both int64 [sentences, tokens]."""
        states: torch.Tensor = self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        return states


class _StatesOfPairs(_States):
    """As _States, of a model that marks the second text of a pair."""

    def forward(  # type: ignore[override]
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, token_type_ids: torch.Tensor
    ) -> torch.Tensor:
        """All int64 [sentences, tokens]."""
        given = {"attention_mask": attention_mask, "token_type_ids": token_type_ids}
        states: torch.Tensor = self.model(input_ids=input_ids, **given).last_hidden_state
        return states


class _Steps(torch.nn.Module):  # type: ignore[misc]
    def __init__(self, steps: Steps) -> None:
        super().__init__()
        self.steps = steps

    def forward(self, pooled: torch.Tensor) -> torch.Tensor:
        """float32 [sentences, width]."""
        return self.steps(pooled)


def convert(settings: ModelSettings, files: ModelFiles, folder: Path) -> None:
    """Write the graphs, in float32. Raises ModelError if transformers can't load the model."""
    in_float32 = settings.model_copy(update={"vllm": {**settings.vllm, "dtype": "float32", "quantization": None}})
    model = load_encoder(in_float32, files, "cpu", IN_OPENVINO)
    ids = torch.full((2, 7), 5 if files.vocab_size > 5 else 0, dtype=torch.int64)
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0
    if files.has_token_types:
        _write(_StatesOfPairs(model), (ids, mask, torch.zeros_like(ids)), folder / STATES)
    else:
        _write(_States(model), (ids, mask), folder / STATES)
    if files.steps:
        width = files.hidden_size * len(files.pooling)
        _write(_Steps(Steps(files.steps)), (torch.rand(2, width),), folder / STEPS)


def _write(module: torch.nn.Module, example: tuple[torch.Tensor, ...], file: Path) -> None:
    # Without this, OpenVINO reports to its makers that a model is converted.
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
    import openvino

    with warnings.catch_warnings(), torch.inference_mode():
        # Tracing warns of every shape that Python code reads. The check at load covers that: it compares batches of
        # many shapes.
        warnings.simplefilter("ignore")
        graph: Any = openvino.convert_model(module.eval(), example_input=example)
    openvino.save_model(graph, file, compress_to_fp16=False)


def main() -> None:
    """Arguments: one JSON object of `settings` (model.json) and `folder`. Exit code 1 with one line for an error."""
    given = json.loads(sys.argv[1])
    from tritonembed_engine.stub.process import prepare_process

    prepare_process(None)
    settings = ModelSettings.model_validate(given["settings"])
    try:
        convert(
            settings, read_model_files(settings.model, settings.revision, settings.max_model_len), Path(given["folder"])
        )
    except ModelError as error:
        sys.exit(f"tritonembed: {error}")
    except Exception as error:
        sys.exit(f"tritonembed: {reason_of(error)}")


if __name__ == "__main__":
    main()
