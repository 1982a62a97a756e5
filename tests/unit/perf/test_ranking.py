"""Products in 8 bits as `ranking` simulates them."""

from pathlib import Path

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from tests.models import ModelShelf

from tritonembed_perf.failures import BenchError
from tritonembed_perf.scripts.ranking import Quantizer, _lines, product_in

TEXTS = [f"{word} {other}" for word in ("a", "the", "one") for other in ("cat", "dog", "house", "street")]


def test_a_product_in_int8_is_that_of_integers() -> None:
    rng = np.random.default_rng(0)
    # Of few bits, so that bfloat16 holds them.
    x, weight = (rng.integers(-100, 100, shape).astype(np.float32) for shape in ((5, 32), (7, 32)))
    x[:, 0], weight[:, 0] = 127, -127
    bias = np.arange(7, dtype=np.float32)
    found = product_in("int8", torch.from_numpy(weight), torch.from_numpy(bias))(torch.from_numpy(x))
    exact = torch.from_numpy(x.astype(np.int64) @ weight.T.astype(np.int64) + bias)
    assert torch.equal(found, exact.bfloat16().float())


@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_smoothing_keeps_the_product_and_makes_large_channels_cost_less(kind: str) -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(20, 64), torch.randn(30, 64)
    x[:, 3] *= 100
    weight[:, 3] /= 100
    factors = torch.ones(64)
    factors[3] = 100
    exact = x @ weight.t()

    def error(smooth: torch.Tensor | None) -> float:
        return float((product_in(kind, weight, None, smooth)(x) - exact).norm() / exact.norm())

    assert error(factors) < 0.06
    # fp8 is a floating type: a row's other values keep their precision beside a large one.
    assert error(None) > (2 * error(factors) if kind == "int8" else 0)


def test_products_are_those_of_layers_and_those_of_one_input_share_their_smoothing(shelf: ModelShelf) -> None:
    quantizer = Quantizer(SentenceTransformer(str(shelf("bert")), device="cpu"), TEXTS)
    layers = {name.split(".layer.")[1][0] for name in quantizer.products}
    assert len(quantizer.products) == 6 * len(layers)
    narrowing = [name for name in quantizer.products if quantizer.is_narrowing(name)]
    assert len(narrowing) == len(layers)
    assert all(quantizer.products[name].in_features > quantizer.products[name].out_features for name in narrowing)
    first = [name for name in quantizer.products if ".layer.0.attention.self." in name]
    smooth = [quantizer._smooth[name] for name in first]
    assert len(first) == 3
    assert all(torch.equal(one, smooth[0]) for one in smooth)
    exact = quantizer.vectors(TEXTS)
    quantizer.apply(dict.fromkeys(quantizer.products, "int8"))
    in_int8 = quantizer.vectors(TEXTS)
    quantizer.apply({})
    rounded = quantizer.vectors(TEXTS)
    assert 0 < np.abs(rounded - exact).max() < np.abs(in_int8 - exact).max()


def test_texts_are_lines_without_comments(tmp_path: Path) -> None:
    (tmp_path / "texts").write_text("# animals\na cat\n\na dog\na cat\n")
    assert _lines(tmp_path / "texts") == ["a cat", "a dog"]
    with pytest.raises(BenchError, match="can't be read"):
        _lines(tmp_path / "none")
