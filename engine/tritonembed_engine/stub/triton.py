"""Tensors, error codes and the start, between Triton's python backend and the engine. For use inside a stub only."""

import atexit
import contextlib
import json
import os
import threading
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import triton_python_backend_utils as pb_utils

from tritonembed_engine import errors
from tritonembed_engine.stub import bytes_tensors
from tritonembed_engine.stub.process import end_at_once

if TYPE_CHECKING:
    from tritonembed_engine.settings import ModelSettings

bytes_tensors.install(pb_utils)

CODES = {
    errors.InvalidArgument: "INVALID_ARG",
    errors.DeadlineExceeded: "UNAVAILABLE",
    errors.DeadlineUnreachable: "UNAVAILABLE",
    errors.Abandoned: "CANCELLED",
    errors.Overloaded: "UNAVAILABLE",
    errors.EngineDead: "UNAVAILABLE",
    errors.DeviceLost: "UNAVAILABLE",
    errors.ExecutionFailed: "INTERNAL",
}
"""Names in pb_utils.TritonError, which has them only after the stub imported the model."""

SECONDS_TO_ANSWER = 0.5
EXIT_CODE = 70
"""EX_SOFTWARE of sysexits.h."""


@contextlib.contextmanager
def start_up(args: dict[str, str]) -> Iterator[None]:
    """Turn any error of `initialize` into one line that begins with `tritonembed: `, for the manager to find.

    args: of `initialize`. In a repository of several models, the line names the model.
    """
    atexit.register(end_at_once)
    try:
        yield
    except errors.ModelError as error:
        problem = str(error)
    except Exception as error:
        # Its text can be long and contain paths: it goes to the log.
        pb_utils.Logger.log_error("".join(traceback.format_exception(error)))
        problem = f"the model could not be loaded ({type(error).__name__}); the server's log has the reason"
    else:
        return
    if _file_parameter(args) is not None:
        problem = f"{args['model_name']}: {problem}"
    # Logged at once: Triton repeats it only when the other instances have loaded, too.
    pb_utils.Logger.log_error(f"tritonembed: {problem}")
    raise pb_utils.TritonModelException(f"tritonembed: {problem}")


FILE_PARAMETER = "model_json"
"""config.pbtxt parameter: the model's model.json, relative to the repository. Without this parameter, model.json is at
the repository's root.

Only repositories of several models have the parameter."""


ADAPTERS_PARAMETER = "adapters"
"""config.pbtxt parameter of `embedder`: the digests of the adapters by their names, as JSON."""


def settings_of(args: dict[str, str]) -> "ModelSettings":
    """The settings of this model. Raises ModelError."""
    from tritonembed_engine.settings import MODEL_JSON, read_settings

    return read_settings(Path(args["model_repository"]).parent, _file_parameter(args) or MODEL_JSON)


def check_digests(digests: Mapping[str, str], model_config: Mapping[str, Any]) -> None:
    """Raise ModelError if an adapter has changed since the repository was rendered: managers name the rendered space.

    digests: of the adapters, by name.
    """
    parameter = model_config.get("parameters", {}).get(ADAPTERS_PARAMETER)
    rendered = {} if parameter is None else json.loads(parameter["string_value"])
    for name, digest in digests.items():
        if rendered.get(name) and rendered[name] != digest:
            raise errors.ModelError(f"adapter {name}: its files have changed since the repository was written")


def _file_parameter(args: dict[str, str]) -> str | None:
    parameter = json.loads(args["model_config"]).get("parameters", {}).get(FILE_PARAMETER)
    return None if parameter is None else str(parameter["string_value"])


def bytes_tensor(request: Any, name: str) -> list[bytes]:
    """A BYTES tensor [batch, 1], flat."""
    elements: list[bytes] = pb_utils.get_input_tensor_by_name(request, name).as_numpy().ravel().tolist()
    if not elements:
        raise errors.InvalidArgument(name, "the batch is empty")
    return elements


def to_bytes_tensor(name: str, elements: Sequence[bytes]) -> Any:
    """Elements as BYTES [batch, 1]. dtype=object: numpy's own bytes type loses trailing zero bytes."""
    array = np.empty((len(elements), 1), dtype=object)
    array[:, 0] = elements
    return pb_utils.Tensor(name, array)


def answer(*tensors: Any) -> Any:
    """A successful response."""
    return pb_utils.InferenceResponse(output_tensors=list(tensors))


def end_process_soon() -> None:
    """End this process after a time for its last answers to leave.

    `tritonembed-manager` sees the process end and restarts the server. If the process stayed, it would go on refusing
    requests.
    """
    pb_utils.Logger.log_error("tritonembed: the GPU is lost to this process, which ends now")
    timer = threading.Timer(SECONDS_TO_ANSWER, os._exit, (EXIT_CODE,))
    timer.daemon = True
    timer.start()


def refusal(error: Exception) -> Any:
    """The response for an error. An unexpected error becomes INTERNAL with its type alone."""
    code = CODES.get(type(error), "INTERNAL")
    message = str(error) if isinstance(error, errors.EmbedError) else f"unexpected {type(error).__name__}"
    if code == "INTERNAL":
        pb_utils.Logger.log_error(f"tritonembed: {message}")
    triton_error = pb_utils.TritonError(message, getattr(pb_utils.TritonError, code))
    return pb_utils.InferenceResponse(output_tensors=[], error=triton_error)
