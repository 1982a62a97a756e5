"""The steps after the pooling, in float32 whatever the model's own type: Dense, LayerNorm, Normalize."""

import inspect
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

import torch

from tritonembed_engine.errors import ModelError
from tritonembed_engine.model.checkpoint import checkpoint_files, selected_tensors
from tritonembed_engine.model.modules import SENTENCE, Step


class Steps:
    """A model's steps on one device: from float32 [sentences, width] to float32 [sentences, dimensions].

    No step waits for the host, so CUDA graphs can capture them.
    """

    def __init__(self, steps: Sequence[Step], device: torch.device | str = "cpu") -> None:
        """Read the weights. Raises ModelError, which names the folder, if they are missing or of another shape."""
        self._steps = [(step, _load(step, device)) for step in steps]

    def __call__(self, pooled: torch.Tensor) -> torch.Tensor:
        """Apply all steps."""
        features = {SENTENCE: pooled}
        for step, modules in self._steps:
            features[step.target] = _apply(step, modules, features[step.source])
        return features[SENTENCE]


def _apply(step: Step, modules: dict[str, torch.nn.Module], values: torch.Tensor) -> torch.Tensor:
    if step.kind == "Normalize":
        return torch.nn.functional.normalize(values, dim=-1)
    if step.kind == "LayerNorm":
        normed: torch.Tensor = modules["norm"](values)
        return normed
    out: torch.Tensor = modules["activation"](modules["linear"](values))
    if step.residual:
        out = out + (modules["residual"](values) if "residual" in modules else values)
    return out


def _load(step: Step, device: torch.device | str) -> dict[str, torch.nn.Module]:
    if step.kind == "Normalize":
        return {}
    assert step.folder is not None
    modules: dict[str, torch.nn.Module] = {}
    if step.kind == "LayerNorm":
        modules["norm"] = torch.nn.LayerNorm(step.width, step.eps, bias=step.bias)
    else:
        modules["linear"] = torch.nn.Linear(step.width, step.out_width, bias=step.bias)
        modules["activation"] = _activation(step.activation)
        if step.residual and step.width != step.out_width:
            modules["residual"] = torch.nn.Linear(step.width, step.out_width, bias=False)
    whole = torch.nn.ModuleDict(modules)
    weights = _weights(step.folder) if step.tensor is None else _weights_of_head(step)
    # In sentence-transformers' Dense, this is the prefix of an activation's parameter (PReLU).
    weights = {name.replace("activation_function.", "activation."): value for name, value in weights.items()}
    try:
        whole.load_state_dict(weights)
    except (RuntimeError, TypeError):
        expected = ", ".join(f"{name} {list(value.shape)}" for name, value in whole.state_dict().items())
        where = step.folder.name if step.tensor is None else f"{step.tensor} of the checkpoint"
        raise ModelError(f"the weights in {where} are not {expected}") from None
    whole.to(device=device, dtype=torch.float32).eval().requires_grad_(False)
    if step.kind == "Dense":
        _check_activation(step, modules["activation"], device)
    return modules


def _check_activation(step: Step, activation: torch.nn.Module, device: torch.device | str) -> None:
    """Raise ModelError if the class does not map a vector to one of the same length (as GLU does not)."""
    probe = torch.ones(2, step.out_width, device=device)
    try:
        shape = getattr(activation(probe), "shape", None)
    except Exception as error:
        raise ModelError(f"the activation_function {step.activation[:80]} fails ({type(error).__name__})") from None
    if shape != probe.shape:
        raise ModelError(f"the activation_function {step.activation[:80]} changes the length of a vector")


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    safetensors, pickled = folder / "model.safetensors", folder / "pytorch_model.bin"
    try:
        if safetensors.is_file():
            from safetensors.torch import load_file

            loaded: dict[str, torch.Tensor] = load_file(safetensors)
            return loaded
        read: dict[str, torch.Tensor] = torch.load(pickled, map_location="cpu", weights_only=True)
        return read
    except Exception as error:
        raise ModelError(f"the weights in {folder.name} can't be read ({type(error).__name__})") from None


def _weights_of_head(step: Step) -> dict[str, torch.Tensor]:
    """The weights of a step that are part of the transformer's checkpoint."""
    assert step.folder is not None
    layer = "norm" if step.kind == "LayerNorm" else "linear"
    wanted = {f"{step.tensor}.{part}": f"{layer}.{part}" for part in ("weight", *(["bias"] if step.bias else []))}
    found = {
        wanted[name]: (tensor if step.rows is None else tensor[list(step.rows)]).float()
        for file in checkpoint_files(step.folder)
        for name, tensor in selected_tensors(file, wanted)
    }
    if missing := [name for name, new in wanted.items() if new not in found]:
        raise ModelError(f"the model's weights lack {', '.join(missing)}")
    if step.rows is not None:
        plus, minus = found[f"{layer}.weight"]
        found[f"{layer}.weight"] = (plus - minus)[None]
    return found


def _activation(name: str) -> torch.nn.Module:
    module, _, kind = name.rpartition(".")
    try:
        found = getattr(import_module(module), kind)
    except (ImportError, AttributeError, ValueError):
        found = None
    if not (inspect.isclass(found) and issubclass(found, torch.nn.Module)):
        raise ModelError(f"the activation_function {name[:80]} is not a class of torch.nn")
    try:
        made: torch.nn.Module = found()
    except Exception:
        raise ModelError(f"the activation_function {name[:80]} can't be made without arguments") from None
    if any(isinstance(value, torch.nn.parameter.UninitializedTensorMixin) for value in made.state_dict().values()):
        raise ModelError(f"the activation_function {name[:80]} has weights of no known shape")
    return made
