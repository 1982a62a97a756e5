"""A folder like a hostile download: modules with names that programs import. They leave a mark when imported."""

from pathlib import Path

NAMES = """
aiohttp asyncio click concurrent ctypes datetime decimal google grpc h2 hashlib html http httpx huggingface_hub json
locale logging multiprocessing numpy opentelemetry orjson pickle prometheus_client psutil pydantic random requests rich
safetensors secrets selectors sitecustomize socket ssl subprocess tempfile tokenizers torch transformers triton
triton_python_backend_utils tritonclient typer typing urllib usercustomize uuid uvloop vllm yaml yarl
""".split()  # noqa: SIM905 - a line of words is easier to read
MARK = "imported.txt"


def fill(folder: Path, names: list[str] | None = None) -> Path:
    """Writes the modules. Returns the file of imported names, which is missing if nothing was imported."""
    folder.mkdir(parents=True, exist_ok=True)
    mark = folder / MARK
    for name in names or NAMES:
        leave = f"open({str(mark)!r}, 'a').write({name!r} + chr(10))"
        (folder / f"{name}.py").write_text(f"{leave}\nraise ImportError('hostile')\n")
    # Triton imports the module `1.model`.
    version = folder / "1"
    version.mkdir(exist_ok=True)
    for name in ("__init__", "model"):
        (version / f"{name}.py").write_text(f"open({str(mark)!r}, 'a').write('1.{name}' + chr(10))\n")
    return mark
