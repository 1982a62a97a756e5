"""model.json: what both python models load."""

from typing import Any

from tritonembed_manager.settings import RenderSettings


def model_json(template: dict[str, Any], settings: RenderSettings) -> dict[str, Any]:
    """The committed model.json made for a model and a machine; engine settings that were not given stay."""
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
    if settings.deterministic:
        engine["deterministic"] = True
    return {**template, "model": settings.model, "vllm": vllm, "engine": engine}
