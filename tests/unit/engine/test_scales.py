"""The bounds behind fp8's scales are never exceeded, and not so wide that e4m3's range is wasted."""

import torch

from tritonembed_engine.kernels.quantize import LARGEST, norm_scale, product_scale

WIDTH = 96


def _norm(gain: float) -> torch.nn.LayerNorm:
    norm = torch.nn.LayerNorm(WIDTH)
    torch.nn.init.normal_(norm.weight, gain, gain / 4)
    torch.nn.init.normal_(norm.bias, 0, gain / 4)
    return norm


def _inputs() -> torch.Tensor:
    """Ordinary rows and the worst row, whose deviation is all in one place."""
    torch.manual_seed(0)
    return torch.cat([torch.randn(500, WIDTH), 1e4 * torch.eye(WIDTH), -1e4 * torch.eye(WIDTH)])


@torch.inference_mode()
def test_a_layer_norm_stays_below_its_bound_and_comes_near_it() -> None:
    for gain in (0.01, 1.0, 30.0):
        norm = _norm(gain)
        largest = norm(_inputs()).abs().max().item()
        bound = norm_scale(norm) * LARGEST
        assert 0.9 * bound < largest <= bound


@torch.inference_mode()
def test_a_product_with_a_layer_norm_stays_below_its_bound_even_for_the_worst_weights() -> None:
    norm = _norm(1.0)
    x = norm(_inputs())
    weight, bias = torch.randn(WIDTH, 40), torch.randn(40)
    weight[:, 0] = x[0] / x[0].norm() * weight.norm(dim=0).max()
    largest = (x @ weight + bias).abs().max().item()
    bound = product_scale(norm, weight, bias) * LARGEST
    assert bound / 4 < largest <= bound
    assert product_scale(norm, weight, None) < product_scale(norm, weight, bias)
    # Random weights lose less than four of e4m3's fifteen powers of two.
    ordinary = (x[:500] @ weight[:, 1:] + bias[1:]).abs().max().item()
    assert bound / 16 < ordinary
