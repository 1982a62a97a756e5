"""How much of its ranking of texts a model keeps with products in 8 bits, as a GPU multiplies, simulated on a CPU.

    python -m tritonembed_perf.scripts.ranking MODEL [--texts FILE ...] [--quality 0.98] [--json FILE]

A product's input has a scale per row, its weights one per output channel; fp8 is e4m3. Everything else is as in the
library transformers, with the products that are not in 8 bits in bfloat16. The texts' vectors are compared with those
of float32: the share of the ten nearest neighbours that stay, of the nearest that stays, and the cosine. The
smoothing's factors and the gate are those of `--quantization int8` (`tritonembed_engine.quantization`); both see only
the calibration texts. The model has to be trained: random weights have no ranking to lose.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from typer import Option

from tritonembed_engine.distance import of_vectors, unit
from tritonembed_engine.errors import ModelError
from tritonembed_engine.quantization import LARGEST, Floats, calibration_texts, choose, overlap, smoothing_factors
from tritonembed_perf.failures import BenchError
from tritonembed_perf.options import Model, run_script

if TYPE_CHECKING:
    import torch

NARROWING = (".output.dense", ".down_proj", ".mlp.Wo")
"""Endings of the name of a feed-forward's second product; attention's output product has the first one, too."""

TEXTS_OF_ERRORS = 64
"""The number of calibration texts with which single products are compared."""

LARGEST_E4M3 = 448.0


def ranking(
    model: Model,
    texts: Annotated[
        list[Path] | None, Option(help="More texts, one per line: those of the gate do not judge it.")
    ] = None,
    quality: Annotated[float, Option(help="The part of the ten nearest that the gate asks for.")] = 0.98,
) -> dict[str, Any]:
    """Print a row per variant and set of texts."""
    from sentence_transformers import SentenceTransformer

    sets = {"calibration": calibration_texts(None)}
    sets |= {file.name: _lines(file) for file in texts or []}
    quantizer = Quantizer(SentenceTransformer(model, device="cpu"), sets["calibration"])
    names = list(quantizer.products)
    wide = [name for name in names if not quantizer.is_narrowing(name)]
    variants: dict[str, Callable[[], None]] = {
        "bfloat16": lambda: quantizer.apply({}),
        "fp8": lambda: quantizer.apply(dict.fromkeys(names, "fp8")),
        "fp8, smoothed": lambda: quantizer.apply(dict.fromkeys(names, "fp8"), smooth=True),
        "int8": lambda: quantizer.apply(dict.fromkeys(names, "int8")),
        "int8, smoothed": lambda: quantizer.apply(dict.fromkeys(names, "int8"), smooth=True),
        "int8, smoothed, second product of the feed-forward in bfloat16": lambda: quantizer.apply(
            dict.fromkeys(wide, "int8"), smooth=True
        ),
    }
    rows = []
    expected = {which: quantizer.vectors(given) for which, given in sets.items()}

    def judge(variant: str) -> None:
        for which, given in sets.items():
            found = quantizer.vectors(given)
            rows.append({"variant": variant, "texts": which, "count": len(given), **_kept(found, expected[which])})
            print(
                f"{variant:>64}, {which:>12}: ten nearest {rows[-1]['ten_nearest']:.4f}, nearest"
                f" {rows[-1]['nearest']:.4f}, cosine {rows[-1]['cosine_least']:.5f} at least,"
                f" {rows[-1]['cosine_mean']:.5f} on average"
            )

    for variant, apply in variants.items():
        apply()
        judge(variant)
    gate = _gate(quantizer, wide, sets["calibration"], expected["calibration"], quality)
    if "quantized" in gate:
        judge(f"int8, gate at {quality:g}")
    return {"products": len(names), "rows": rows, "gate": gate}


def _gate(
    quantizer: "Quantizer", names: Sequence[str], texts: Sequence[str], expected: Floats, quality: float
) -> dict[str, Any]:
    """Choose the products that stay in bfloat16 beside those that are not named, and leave the model so."""
    few = slice(None, None, max(1, len(texts) // TEXTS_OF_ERRORS))

    def apply(chosen: Sequence[str]) -> None:
        quantizer.apply(dict.fromkeys(chosen, "int8"), smooth=True)

    def error_of(name: str) -> float:
        apply([name])
        return float(of_vectors(quantizer.vectors(texts[few]), expected[few]).mean())

    def quality_of(chosen: Sequence[str]) -> float:
        apply(chosen)
        return overlap(quantizer.vectors(texts), expected)

    sizes = {name: quantizer.products[name].weight.numel() for name in names}
    try:
        chosen = choose(sizes, error_of, quality_of, quality)
    except ModelError as error:
        print(f"int8: {error}")
        return {"refused": str(error)}
    apply(chosen.quantized)
    every = sum(product.weight.numel() for product in quantizer.products.values())
    share = sum(sizes[name] for name in chosen.quantized) / every
    print(f"int8: {len(chosen.quantized)} of {len(quantizer.products)} products, {share:.0%} of the multiplications")
    return {**chosen.as_json(), "share": share}


class Quantizer:
    """A model whose products can be in 8 bits."""

    def __init__(self, model: Any, texts: Sequence[str]) -> None:
        """model: sentence-transformers', in float32. texts: every second one is used, for the smoothing's factors.

        Raises BenchError for a model without products in a list of layers.
        """
        import torch

        self._model = model
        self.products: dict[str, Any] = {
            name: module
            for name, module in model[0].auto_model.named_modules()
            if isinstance(module, torch.nn.Linear) and any(part.isdigit() for part in name.split("."))
        }
        if not self.products:
            raise BenchError("the model has no products in layers")
        self._smooth = self._factors(texts[::2])

    def is_narrowing(self, name: str) -> bool:
        """Whether it is the second product of a feed-forward."""
        return name.endswith(NARROWING) and "attention" not in name

    def vectors(self, texts: Sequence[str], batch: int = 32) -> Floats:
        """float32 [texts, dimensions]. Scales are per row, so padding changes nothing."""
        found: Floats = self._model.encode(list(texts), batch_size=batch, show_progress_bar=False)
        return found

    def apply(self, kinds: dict[str, str], smooth: bool = False) -> None:
        """Compute these products in "int8" or "fp8", and all others in bfloat16."""
        for name, product in self.products.items():
            factors = self._smooth[name] if smooth else None
            product.forward = product_in(kinds.get(name), product.weight, product.bias, factors)

    def _factors(self, texts: Sequence[str]) -> "dict[str, torch.Tensor]":
        """The smoothing's factors, by which each product's input is divided. Products of the same input share them."""
        import torch

        largest: dict[str, Floats] = {}
        inputs: dict[str, torch.Tensor] = {}

        def note(name: str) -> Callable[[Any, Any], None]:
            def hook(_: Any, given: Any) -> None:
                inputs[name] = given[0]
                found = given[0].detach().abs().flatten(0, -2).amax(0).numpy()
                largest[name] = np.maximum(largest.get(name, found), found)

            return hook

        hooks = [product.register_forward_pre_hook(note(name)) for name, product in self.products.items()]
        # One by one, because the values of padding must not count.
        self.vectors(texts, batch=1)
        for hook in hooks:
            hook.remove()
        sharing: dict[int, list[str]] = {}
        for name, given in inputs.items():
            sharing.setdefault(id(given), []).append(name)
        factors: dict[str, torch.Tensor] = {}
        for names in sharing.values():
            weights = [self.products[name].weight.detach().numpy() for name in names]
            factors |= dict.fromkeys(names, torch.from_numpy(smoothing_factors(largest[names[0]], weights)))
        return factors


def product_in(
    kind: str | None, weight: "torch.Tensor", bias: "torch.Tensor | None", factors: "torch.Tensor | None" = None
) -> "Callable[[torch.Tensor], torch.Tensor]":
    """x W^T + b with both sides in "int8" or "fp8" (None: in bfloat16), summed in float32, rounded to bfloat16.

    weight: [outputs, inputs]. factors: [inputs], of the smoothing.
    """
    import torch

    def rounded(x: torch.Tensor) -> torch.Tensor:
        if kind is None:
            return x.bfloat16().float()
        most = LARGEST if kind == "int8" else LARGEST_E4M3
        scale = x.abs().amax(-1, keepdim=True).clamp_min(1e-12) / most
        if kind == "int8":
            return (x / scale).round().clamp(-most, most) * scale
        return (x / scale).to(torch.float8_e4m3fn).float() * scale

    divided = factors is not None and kind is not None
    weights = rounded(weight.detach() * factors if divided else weight.detach())

    def forward(x: torch.Tensor) -> torch.Tensor:
        x = x.bfloat16().float()
        out = torch.nn.functional.linear(rounded(x / factors if divided else x), weights, bias)
        return out.bfloat16().float()

    return forward


def _kept(found: Floats, expected: Floats) -> dict[str, float]:
    first = [_nearest(vectors) for vectors in (found, expected)]
    distances = of_vectors(found, expected)
    return {
        "ten_nearest": overlap(found, expected),
        "nearest": float(np.mean(first[0] == first[1])),
        "cosine_least": 1 - float(distances.max()),
        "cosine_mean": 1 - float(distances.mean()),
    }


def _nearest(vectors: Floats) -> Any:
    scores = unit(vectors) @ unit(vectors).T
    np.fill_diagonal(scores, -np.inf)
    return scores.argmax(1)


def _lines(file: Path) -> list[str]:
    """The lines of a file, without blank lines and those that begin with #."""
    try:
        lines = file.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        raise BenchError("a file of --texts can't be read: UTF-8 with one text per line") from None
    texts = dict.fromkeys(line for line in lines if line.strip() and not line.startswith("#"))
    return list(texts)


if __name__ == "__main__":
    run_script("ranking", __doc__, ranking)
