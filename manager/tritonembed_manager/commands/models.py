"""The models that a command serves, from --model (or its variable) and --models."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from tritonembed_manager.errors import StartError
from tritonembed_manager.server.vllm_arguments import variable

if TYPE_CHECKING:
    from tritonembed_manager.server.models_file import ModelEntry
    from tritonembed_protocol.served import Task


def given_models(context: typer.Context, models: Sequence[str] | None) -> list[str]:
    """The values of --model. The variable holds one value: typer would split it at spaces."""
    source = context.get_parameter_source("model")
    if models and source is not None and source.name == "ENVIRONMENT":
        return [os.environ[variable("--model")]]
    return list(models or ())


def chosen_models(
    context: typer.Context, models: Sequence[str] | None, file: Path | None, task: "Task | None", *, fetch: bool
) -> tuple[list["ModelEntry"], str]:
    """The models, at least one or none was given; and the option that they come from. Raises StartError.

    task: of `--task`. fetch: whether the files of a model on the hub are fetched, to find what it does.
    """
    from tritonembed_manager.server import models_file

    given = given_models(context, models)
    if file is None:
        found = models_file.parse_models(given)
        return models_file.with_tasks(found, task, fetch=fetch), models_file.MODEL
    if given:
        raise StartError(f"{models_file.MODEL} and {models_file.OPTION} exclude each other")
    return models_file.with_tasks(models_file.read_models(file), task, fetch=fetch), models_file.OPTION
