"""What the values inside a model can't exceed, from its weights alone: the scales of fp8 before any batch is seen.

With one scale for all rows a kernel quantizes its own result without a look at the whole row, which other programs may
hold. LayerNorm gives x = gain * z + shift with |z_i| <= sqrt(width) and ||z|| = sqrt(width); a product of it is bounded
by Cauchy and Schwarz, |x w| <= ||x|| ||w||. These bounds are 5 to 10 times what occurs, and that costs nothing: e4m3 is
a floating type, as precise at a thousandth of its largest value as there.
"""

import torch

from tritonembed_engine.kernels.quantize import LARGEST

_ROUNDING = 1 + 2**-4
"""How much larger a value in e4m3 can be than the one that was rounded to it, but for the very smallest."""

_SMALLEST = 1e-12
"""Of a scale: that of zeros alone would be 0."""


def norm_scale(norm: torch.nn.LayerNorm) -> float:
    """The scale of a LayerNorm's output."""
    gain, shift = _float(norm)
    return max(float((gain.abs() * len(gain) ** 0.5 + shift.abs()).max()) / LARGEST, _SMALLEST)


def product_scale(norm: torch.nn.LayerNorm, weight: torch.Tensor, bias: torch.Tensor | None) -> float:
    """The scale of `norm(...) @ weight + bias`, and of what is no larger: GELU of it, or means of its rows.

    weight: [inputs, outputs], in real values. bias: [outputs].
    """
    gain, shift = _float(norm)
    longest = gain.abs().max() * len(gain) ** 0.5 + shift.norm()
    largest = longest * weight.norm(dim=0) * _ROUNDING
    if bias is not None:
        largest = largest + bias.float().abs()
    return max(float(largest.max()) / LARGEST, _SMALLEST)


def _float(norm: torch.nn.LayerNorm) -> tuple[torch.Tensor, torch.Tensor]:
    return norm.weight.detach().float(), norm.bias.detach().float()
