"""Can the model be served at all? Asked before anything starts, where the answer takes no GPU and little time."""

from tritonembed_manager.errors import StartError


def check_model(model: str, revision: str | None) -> None:
    """Raise StartError, in one line, for what is not an embedding model with a tokenizer."""
    try:
        from tritonembed_engine.errors import ModelError
        from tritonembed_engine.model_files import read_model_files
    except ImportError:
        # The manager alone is installed: the server's own environment will say what it thinks of the model.
        return
    try:
        read_model_files(model, revision)
    except ModelError as error:
        raise StartError(f"--model: {error}") from None
