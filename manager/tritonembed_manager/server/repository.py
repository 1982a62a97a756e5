"""The model repository: checks a model's files, and renders configurations and model.json for a model and a machine.

The committed repository is the template. Configurations are Triton's (config.pbtxt).
"""

import json
import shlex
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from google.protobuf import text_format  # type: ignore[import-untyped]
from tritonclient.grpc import model_config_pb2

from tritonembed_manager.errors import StartError
from tritonembed_manager.server.settings import RenderSettings
from tritonembed_protocol.served import FIRST_MODEL, FIRST_OF_TASK, ServedModel, Task
from tritonembed_protocol.space import QUALITY

if TYPE_CHECKING:
    from tritonembed_engine.model.files import ModelFiles


def check_models(models: Sequence[RenderSettings]) -> list[int | None]:
    """Check all models as `check_model` does. If there are several, the StartError names the faulty model.

    Returns the tokens of the longest text of each; None if they are not known.
    """
    lengths = []
    for model in models:
        try:
            lengths.append(check_model(model.model, model.vllm.get("revision"), model.vllm.get("max_model_len")))
        except StartError as error:
            raise StartError(f"{model.served.name}: {error}" if len(models) > 1 else str(error)) from None
        check_adapters(model)
    return lengths


def check_adapters(model: RenderSettings) -> None:
    """Raise StartError, which names the adapter, if one can't be served with the model."""
    if not model.adapters:
        return
    try:
        from tritonembed_engine.errors import ModelError
        from tritonembed_engine.model.adapters import read_adapter
        from tritonembed_engine.model.files import read_model_files
    except ImportError:
        # See `check_model`.
        return
    try:
        files = read_model_files(model.model, model.vllm.get("revision"))
        for name, path in model.adapters:
            read_adapter(name, path, files)
    except ModelError as error:
        # The message begins with the adapter, as the option does.
        raise StartError(f"--{error}") from None


def adapter_digests(model: RenderSettings) -> dict[str, str]:
    """The digests of a model's adapters, by name; empty ones if their files can't be read here."""
    files = known_files(model.model, model.vllm.get("revision")) if model.adapters else None
    return {name: _digest(name, path, files) for name, path in model.adapters}


def _digest(name: str, path: str, files: "ModelFiles | None") -> str:
    if files is None:
        return ""
    from tritonembed_engine.errors import ModelError
    from tritonembed_engine.model.adapters import read_adapter

    try:
        return read_adapter(name, path, files).digest
    except ModelError:
        return ""


def read_digests(text: str) -> dict[str, str]:
    """The content of ADAPTERS_PARAMETER; empty if it is none that `render` writes."""
    try:
        found = json.loads(text) if text else {}
        pairs = dict(found).items()
    except (ValueError, TypeError):
        return {}
    return {name: digest for name, digest in pairs if isinstance(name, str) and isinstance(digest, str)}


def check_model(model: str, revision: str | None, max_model_len: int | None = None) -> int | None:
    """Raise StartError if this is no embedding model with a tokenizer, or if it can't take `max_model_len` tokens.

    max_model_len: vLLM's engine argument; None if it was not given. Returns the tokens of the longest text; None if the
    packages that read a model are not installed here.
    """
    try:
        from tritonembed_engine.errors import ModelError
        from tritonembed_engine.model.files import read_model_files
        from tritonembed_engine.model.folder import read_object
    except ImportError:
        # Only the manager is installed, without the packages that read a model. The server will check the model.
        return None
    try:
        files = read_model_files(model, revision)
        # Otherwise only Triton's processes would find an incomplete tokenizer.json, left by an interrupted download.
        read_object(files.folder / "tokenizer.json")
    except ModelError as error:
        raise StartError(f"--model: {error}") from None
    if max_model_len is not None and max_model_len > files.max_length:
        raise StartError(f"--max-model-len: {max_model_len} tokens, but {files.name} takes at most {files.max_length}")
    return max_model_len or files.max_length


def task_of(model: str, revision: str | None, fetch: bool) -> Task:
    """A model's task, by its files; an embedding model if they can't be read.

    fetch: whether the files of a model on the hub are fetched.
    """
    files = known_files(model, revision, fetch=fetch)
    return "embed" if files is None or files.classifier is None else "score"


def known_files(model: str, revision: str | None, *, fetch: bool = False) -> "ModelFiles | None":
    """A model's files, as far as they are on this machine or are fetched; None if they can't be read.

    `check_model` says why. model: a folder, or a name on the hub.
    """
    try:
        from huggingface_hub import snapshot_download

        from tritonembed_engine.model.files import read_model_files

        if fetch or is_folder(model):
            return read_model_files(model, revision)
        return read_model_files(snapshot_download(model, revision=revision, local_files_only=True))
    except Exception:
        return None


def is_folder(model: str) -> bool:
    """Whether `model` is a local folder, not a name on the hub."""
    return Path(model).is_dir()


ModelConfig = Any
"""The protobuf message inference.ModelConfig. Its generated module has no types."""

_DEVICES_PARAMETER = "devices"
"""Parameter of `embedder`: {instance group: [GPU, …]} as JSON. Triton gives a KIND_MODEL instance no device."""


def parse_config(text: str) -> ModelConfig:
    """Parse the text of a config.pbtxt. Raises google.protobuf.text_format.ParseError."""
    return text_format.Parse(text, model_config_pb2.ModelConfig())


_CPU_PREFERRED_BATCH = 64
"""Sentences that Triton sends to an instance at once on a CPU, if more wait. The templates have the number for a GPU.

Triton picks by priority when it forms such a batch, and answers when the whole batch is done. So a smaller batch gives
urgent requests an earlier answer.
"""

QUEUE_FIELDS = ("priority_levels", "default_priority_level", "default_queue_policy", "priority_queue_policy")
"""With any of these fields, Triton's batcher does not prefetch (`PriorityQueue::SupportPrefetching`).

Then it waits for a free instance. It is woken just before the instance counts as free (`Payload::Execute`), and may
check again only after 500 ms.
"""


def _set_tokenizer(config: ModelConfig, settings: RenderSettings) -> None:
    """Set the batching of `tokenizer` and its instances, on the CPU."""
    _set_batching(config, settings)
    del config.instance_group[:]
    config.instance_group.add(kind=model_config_pb2.ModelInstanceGroup.KIND_CPU, count=settings.tokenizer_instances)


def _set_embedder(config: ModelConfig, settings: RenderSettings) -> None:
    """Set the batching of `embedder`, its instances and their devices, and give it the output that int8 has."""
    groups = model_config_pb2.ModelInstanceGroup
    _set_batching(config, settings)
    if settings.vllm.get("quantization") == "int8":
        config.output.add(name=QUALITY, data_type=model_config_pb2.TYPE_FP64, dims=[1])
    del config.instance_group[:]
    if _DEVICES_PARAMETER in config.parameters:
        del config.parameters[_DEVICES_PARAMETER]
    if settings.device == "cpu":
        config.instance_group.add(kind=groups.KIND_CPU, count=settings.replicas)
    elif settings.tensor_parallel_size == 1:
        config.instance_group.add(kind=groups.KIND_GPU, count=settings.replicas, gpus=settings.gpus)
    else:
        devices: dict[str, list[int]] = {}
        for gpus in settings.gpu_groups():
            for _ in range(settings.replicas):
                name = f"{config.name}_tp{len(devices)}"
                config.instance_group.add(name=name, kind=groups.KIND_MODEL, count=1)
                devices[name] = gpus
        config.parameters[_DEVICES_PARAMETER].string_value = json.dumps(devices)


def _set_batching(config: ModelConfig, settings: RenderSettings) -> None:
    if settings.device == "cpu":
        config.dynamic_batching.preferred_batch_size[:] = [_CPU_PREFERRED_BATCH]
    if not settings.limits_in_triton:
        for field in QUEUE_FIELDS:
            config.dynamic_batching.ClearField(field)


def add_token_outputs(config: ModelConfig, names: Iterable[str]) -> None:
    """Give an embedder or its ensemble these outputs: BYTES, one element per sentence."""
    for name in names:
        config.output.add(name=name, data_type=model_config_pb2.TYPE_STRING, dims=[1])
        for step in list(config.ensemble_scheduling.step)[-1:]:
            step.output_map[name] = name


def instance_kinds(configs: Iterable[ModelConfig]) -> set[str]:
    """The kinds of the models' instances, by Triton's names. An ensemble has no instances."""
    name = model_config_pb2.ModelInstanceGroup.Kind.Name
    return {name(group.kind) for config in configs for group in config.instance_group}


def share_a_gpu(configs: Iterable[ModelConfig]) -> bool:
    """Whether several instances of a model run on the same GPU."""
    gpu = model_config_pb2.ModelInstanceGroup.KIND_GPU
    return any(group.kind == gpu and group.count > 1 for config in configs for group in config.instance_group)


def model_json(template: dict[str, Any], settings: RenderSettings) -> dict[str, Any]:
    """The committed model.json, which both python models load, adapted to a model and a machine.

    Engine settings that were not given stay.
    """
    vllm = {**template.get("vllm", {}), **settings.vllm}
    for machine_argument in ("gpu_memory_utilization", "tensor_parallel_size"):
        vllm.pop(machine_argument, None)
    if settings.device == "cuda":
        vllm["gpu_memory_utilization"] = settings.gpu_memory_share()
        if settings.tensor_parallel_size > 1:
            vllm["tensor_parallel_size"] = settings.tensor_parallel_size
    engine = dict(template.get("engine", {}))
    if settings.device == "cpu" and not settings.limits_in_triton:
        engine["queue"] = "engine"
    if settings.executor is not None:
        engine["executor"] = settings.executor
    if settings.max_batch_tokens is not None:
        engine["max_batch_tokens"] = settings.max_batch_tokens
    if settings.reference is not None:
        engine["reference"] = settings.reference
    if settings.quantization_quality is not None:
        engine["quantization_quality"] = settings.quantization_quality
    if settings.calibration is not None:
        engine["calibration"] = settings.calibration
    if settings.deterministic:
        engine["deterministic"] = True
    if settings.cache_bytes:
        engine["cache_bytes"] = settings.cache_bytes
    if settings.instruction_template is not None:
        engine["instruction_template"] = settings.instruction_template
    adapters = {"adapters": dict(settings.adapters)} if settings.adapters else {}
    return {**template, "model": settings.model, "vllm": vllm, "engine": engine, **adapters}


_FILE_PARAMETER = "model_json"
"""Parameter of the python models in a repository of several models: where their model.json is."""
LENGTH_PARAMETER = "max_model_len"
"""Parameter of `embedder`: the tokens of the longest text, if they are known. For managers that attach."""
ADAPTERS_PARAMETER = "adapters"
"""Parameter of `embedder`: the digests of the model's adapters by their names, as JSON. For managers that attach."""
MARKER = ".rendered-by-tritonembed"
CONFIG = "config.pbtxt"
MODEL_JSON = "model.json"
_TEMPLATES: dict[Task, str] = {"embed": "model_repository", "score": "rerank_repository"}
LABELS_PARAMETER = "labels"
"""Parameter of the ensembles of a reranker or classifier: its labels, as JSON."""
MODEL_VARIABLE = "TRITONEMBED_MODEL"
"""Overrides the model in model.json. The engine has it too; its module would bring pydantic along."""


def template_folder(task: Task = "embed") -> Path:
    """The committed model repository for a task. A wheel has it in this package, a checkout at its root."""
    here, name = Path(__file__).resolve().parents[1], _TEMPLATES[task]
    for folder in (here / name, here.parents[1] / name):
        if (folder / MODEL_JSON).is_file():
            return folder
    raise StartError("this installation of tritonembed has no model repository; install it again")


def render(out: Path, *models: RenderSettings, force: bool = False) -> None:
    """Write the repository `out` of these models, in their order, completely or not at all.

    force: write even if `out` holds files that were not rendered. Files that are not part of a repository stay there.
    Raises StartError if `out` is in use for something else or can't be written.
    """
    out = Path(out)
    ours = (out / MARKER).is_file()
    in_use = out.exists() and (not out.is_dir() or any(out.iterdir()))
    if in_use and not ours and not (force and out.is_dir()):
        raise StartError(f"{out} was not written by render; choose another folder, or --force to write into it")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as scratch:
            written = Path(scratch) / "new"
            _write(written, models)
            if in_use and not ours:
                _replace_entries(written, out)
            else:
                _replace_folder(written, out, Path(scratch) / "old")
    except OSError as error:
        raise StartError(f"cannot write {out}: {error.strerror}") from None


def tritonserver_line(repository: Path) -> str:
    """The shell command that starts a server on a repository."""
    return shlex.join(["tritonserver", f"--model-repository={repository}"])


def read_configs(repository: Path) -> dict[str, ModelConfig]:
    """The configurations of a repository's models, by name."""
    paths = sorted(Path(repository).glob(f"*/{CONFIG}"))
    return {path.parent.name: parse_config(path.read_text()) for path in paths}


def served_models(configs: Iterable[str]) -> list[ServedModel]:
    """The served models of a repository, in their order; at least one. configs: the names of its models."""
    names = set(configs)
    tasks: tuple[Task, ...] = get_args(Task)
    known = [ServedModel(name, task) for name in sorted(names) for task in tasks]
    found = [model for model in known if names.issuperset(model.triton_models)]
    return sorted(found, key=lambda model: not model.is_first) or [FIRST_MODEL]


def _write(folder: Path, models: Sequence[RenderSettings]) -> None:
    for settings in models:
        _write_model(folder, settings, is_only=len(models) == 1)
    (folder / MARKER).write_text("Written by tritonembed-manager render, which replaces this folder as a whole.\n")


def _write_model(folder: Path, settings: RenderSettings, *, is_only: bool) -> None:
    served, files = settings.served, known_files(settings.model, settings.vllm.get("revision"))
    template, pattern = template_folder(served.task), FIRST_OF_TASK[served.task]
    # The model's sparse weights and token vectors.
    per_token = () if files is None else files.token_outputs.per_token
    length = settings.vllm.get("max_model_len") or (files and files.max_length)
    names = dict(zip(pattern.triton_models, served.triton_models, strict=True))
    file = MODEL_JSON if served.is_first else f"{served.name}/{MODEL_JSON}"
    for old, new in names.items():
        shutil.copytree(template / old, folder / new, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
        config = parse_config((template / old / CONFIG).read_text())
        config.name = new
        for step in config.ensemble_scheduling.step:
            step.model_name = names[step.model_name]
        if old == pattern.tokenizer:
            _set_tokenizer(config, settings)
        elif old == pattern.embedder:
            _set_embedder(config, settings)
            if length:
                config.parameters[LENGTH_PARAMETER].string_value = str(length)
            if settings.adapters:
                config.parameters[ADAPTERS_PARAMETER].string_value = json.dumps(adapter_digests(settings))
        elif files is not None and files.classifier is not None:
            config.parameters[LABELS_PARAMETER].string_value = json.dumps(files.classifier.labels)
        if old in (FIRST_MODEL.embedder, FIRST_MODEL.name):
            add_token_outputs(config, per_token)
        if config.backend and not (is_only and served.is_first):
            config.parameters[_FILE_PARAMETER].string_value = file
        (folder / new / CONFIG).write_text(str(text_format.MessageToString(config)))
    content = model_json(json.loads((template / MODEL_JSON).read_text()), settings)
    (folder / file).write_text(json.dumps(content, indent=2) + "\n")


def _replace_folder(new: Path, out: Path, old: Path) -> None:
    if out.exists():
        out.rename(old)
    new.rename(out)


def _replace_entries(new: Path, out: Path) -> None:
    for entry in new.iterdir():
        target = out / entry.name
        if target.is_dir() and not target.is_symlink():
            shutil.rmtree(target)
        entry.replace(target)
