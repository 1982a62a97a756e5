"""BERT's embeddings in one pass: word + position + token type 0, then LayerNorm."""

import torch
import triton
import triton.language as tl

from tritonembed_engine.kernels.rows import rows_per_program


@triton.jit(do_not_specialize=["rows"])
def _embed_layer_norm(  # type: ignore[no-untyped-def]
    ids, positions, words, places, kind, weight, bias, out, rows, width, first_place, eps,
    ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, BLOCK)
    inside = (row < rows)[:, None] & (column < width)[None, :]
    word = tl.load(ids + row, row < rows, other=0)
    place = tl.load(positions + row, row < rows, other=0) + first_place
    value = tl.load(words + word[:, None] * width + column[None, :], inside, other=0.0).to(tl.float32)
    value += tl.load(places + place[:, None] * width + column[None, :], inside, other=0.0).to(tl.float32)
    value += tl.load(kind + column, column < width, other=0.0).to(tl.float32)[None, :]
    mean = tl.sum(value, 1) / width
    centred = tl.where(inside, value - mean[:, None], 0.0)
    scale = 1.0 / tl.sqrt(tl.sum(centred * centred, 1) / width + eps)
    gain = tl.load(weight + column, column < width, other=0.0).to(tl.float32)
    shift = tl.load(bias + column, column < width, other=0.0).to(tl.float32)
    result = centred * scale[:, None] * gain[None, :] + shift[None, :]
    tl.store(out + row[:, None] * width + column[None, :], result.to(out.dtype.element_ty), inside)


def embed_layer_norm(
    ids: torch.Tensor,
    positions: torch.Tensor,
    words: torch.Tensor,
    places: torch.Tensor,
    kind: torch.Tensor,
    norm: torch.nn.LayerNorm,
    first_place: int,
) -> torch.Tensor:
    """LayerNorm(words[ids] + places[positions + first_place] + kind).

    ids, positions: int [tokens]. words, places: [vocabulary or places, width]. kind: [width], the row of token type 0.
    first_place: 0 for BERT, padding id + 1 for RoBERTa. Gives [tokens, width] in the type of `words`.
    """
    rows, width = len(ids), words.shape[1]
    out = torch.empty((rows, width), dtype=words.dtype, device=words.device)
    block = triton.next_power_of_2(width)
    per_program = rows_per_program(block)
    _embed_layer_norm[(triton.cdiv(rows, per_program),)](
        ids, positions, words, places, kind, norm.weight, norm.bias, out, rows, width, first_place, norm.eps,
        ROWS=per_program, BLOCK=block, num_warps=4,
    )  # fmt: skip
    return out


def embed_layer_norm_reference(
    ids: torch.Tensor,
    positions: torch.Tensor,
    words: torch.Tensor,
    places: torch.Tensor,
    kind: torch.Tensor,
    norm: torch.nn.LayerNorm,
    first_place: int,
) -> torch.Tensor:
    """The same in PyTorch, in float32."""
    summed = words[ids.long()].float() + places[positions.long() + first_place].float() + kind.float()
    weight, bias = norm.weight.float(), norm.bias.float()
    return torch.nn.functional.layer_norm(summed, (words.shape[1],), weight, bias, norm.eps).to(words.dtype)
