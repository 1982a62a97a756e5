"""Can the model be served at all? Asked of its files before anything starts: that takes no GPU and little time."""

from pathlib import Path

from tritonembed_manager.errors import StartError


def check_model(model: str, revision: str | None, max_model_len: int | None = None) -> None:
    """Raises StartError, in one line, for what is not an embedding model with a tokenizer, or takes no such long texts.

    max_model_len: what vLLM will be told, if it is.
    """
    try:
        from tritonembed_engine.errors import ModelError
        from tritonembed_engine.model.files import read_model_files
        from tritonembed_engine.model.folder import read_object
    except ImportError:
        # The manager alone is installed, without the packages that read a model: the server will say it.
        return
    try:
        files = read_model_files(model, revision)
        # Half a tokenizer.json, of a download that broke off, would be found by Triton's processes alone.
        read_object(files.folder / "tokenizer.json")
    except ModelError as error:
        raise StartError(f"--model: {error}") from None
    if max_model_len is not None and max_model_len > files.max_length:
        raise StartError(f"--max-model-len: {max_model_len} tokens, but {files.name} takes at most {files.max_length}")


def is_folder(model: str) -> bool:
    """Whether a model is given as a folder, which is complete, or by a name that a hub has to know."""
    return Path(model).is_dir()
