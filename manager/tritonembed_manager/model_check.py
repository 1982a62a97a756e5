"""Can the model be served at all? Asked of its files before anything starts: that takes no GPU and little time."""

from pathlib import Path

from tritonembed_manager.errors import StartError


def check_model(model: str, revision: str | None) -> int | None:
    """How many dimensions the model's vectors have; None where only the server's environment can tell.

    Raises StartError, in one line, for what is not an embedding model with a tokenizer.
    """
    try:
        from tritonembed_engine.errors import ModelError
        from tritonembed_engine.model_files import read_model_files
    except ImportError:
        # The manager alone is installed, without the packages that read a model.
        return None
    try:
        return read_model_files(model, revision).dimensions
    except ModelError as error:
        raise StartError(f"--model: {error}") from None


def is_folder(model: str) -> bool:
    """Whether a model is given as a folder, which is complete, or by a name that a hub has to know."""
    return Path(model).is_dir()
