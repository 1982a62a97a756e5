"""Decoders in the shapes of the hub's, with random weights, to measure their speed.

    python -m tritonembed_perf.decoder_models qwen3-0.6b OUT

Weights come from one block of random numbers, again and again from other places: seven billion would take minutes.
"""

import argparse
import math
from collections.abc import Iterator
from pathlib import Path

from tritonembed_perf.models import BERT_TOKENIZER, SMALL, write_json, write_sentence_files

SHAPES: dict[str, dict[str, int]] = {
    "qwen3-0.6b": {"layers": 28, "hidden": 1024, "heads": 16, "key_heads": 8, "intermediate": 3072},
    "qwen3-4b": {"layers": 36, "hidden": 2560, "heads": 32, "key_heads": 8, "intermediate": 9728},
    "qwen3-8b": {"layers": 36, "hidden": 4096, "heads": 32, "key_heads": 8, "intermediate": 12288},
}
"""Sizes as in config.json of Qwen3-Embedding. All have heads of 128 and rotary positions with base 1,000,000."""

HEAD = 128
VOCABULARY = 151_669
LONGEST = 32_768
WEIGHT_STD = 0.02
BLOCK = 1 << 24
SHARD_BYTES = 4 << 30


def write_decoder(name: str, folder: Path) -> Path:
    """Write a model of SHAPES in bfloat16, with the tokenizer of bert-base-uncased. Returns the folder."""
    shape = SHAPES[name]
    config = {
        "architectures": ["Qwen3ForCausalLM"],
        "attention_bias": False,
        "eos_token_id": 102,
        "head_dim": HEAD,
        "hidden_act": "silu",
        "hidden_size": shape["hidden"],
        "intermediate_size": shape["intermediate"],
        "max_position_embeddings": LONGEST,
        "model_type": "qwen3",
        "num_attention_heads": shape["heads"],
        "num_hidden_layers": shape["layers"],
        "num_key_value_heads": shape["key_heads"],
        "pad_token_id": 0,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1_000_000,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "vocab_size": VOCABULARY,
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "config.json", config)
    (folder / "tokenizer.json").write_bytes(BERT_TOKENIZER.read_bytes())
    tokens = {f"{token}_token": f"[{token.upper()}]" for token in ("cls", "sep", "pad", "unk", "mask")}
    write_json(
        folder / "tokenizer_config.json",
        {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": LONGEST, **tokens},
    )
    write_sentence_files(folder, shape["hidden"], {**SMALL, "pooling": "lasttoken", "max_length": LONGEST})
    _write_weights(folder, shape)
    return folder


def _tensors(shape: dict[str, int]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of all weights, as in Qwen3's checkpoints."""
    hidden, intermediate = shape["hidden"], shape["intermediate"]
    queries, keys = shape["heads"] * HEAD, shape["key_heads"] * HEAD
    yield "model.embed_tokens.weight", (VOCABULARY, hidden)
    for layer in range(shape["layers"]):
        prefix = f"model.layers.{layer}."
        for name, rows in (("q", queries), ("k", keys), ("v", keys)):
            yield f"{prefix}self_attn.{name}_proj.weight", (rows, hidden)
        yield f"{prefix}self_attn.o_proj.weight", (hidden, queries)
        for name in ("q", "k"):
            yield f"{prefix}self_attn.{name}_norm.weight", (HEAD,)
        for name in ("gate", "up"):
            yield f"{prefix}mlp.{name}_proj.weight", (intermediate, hidden)
        yield f"{prefix}mlp.down_proj.weight", (hidden, intermediate)
        for name in ("input", "post_attention"):
            yield f"{prefix}{name}_layernorm.weight", (hidden,)
    yield "model.norm.weight", (hidden,)


def _write_weights(folder: Path, shape: dict[str, int]) -> None:
    import torch
    from safetensors.torch import save_file

    block = (torch.randn(BLOCK, generator=torch.Generator().manual_seed(0)) * WEIGHT_STD).to(torch.bfloat16)
    shards: list[dict[str, torch.Tensor]] = [{}]
    room, start = SHARD_BYTES, 0
    for name, size in _tensors(shape):
        count = math.prod(size)
        if len(size) == 1:
            tensor = torch.ones(size, dtype=torch.bfloat16)
        else:
            # A prime step: no two weights are the same.
            start = (start + 7_919_333) % BLOCK
            repeats = -(-(start + count) // BLOCK)
            tensor = block.repeat(repeats)[start : start + count].view(size).clone()
        if room < 2 * count:
            shards.append({})
            room = SHARD_BYTES
        shards[-1][name] = tensor
        room -= 2 * count
    if len(shards) == 1:
        save_file(shards[0], folder / "model.safetensors")
        return
    places = {}
    for number, shard in enumerate(shards, start=1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        save_file(shard, folder / file)
        places.update(dict.fromkeys(shard, file))
    write_json(folder / "model.safetensors.index.json", {"metadata": {}, "weight_map": places})


def main() -> None:
    """The command: which model, and the folder to write."""
    parser = argparse.ArgumentParser(description="Write a decoder with random weights.")
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    write_decoder(arguments.shape, arguments.folder)
    print(f"wrote {arguments.shape} with random weights to {arguments.folder}")


if __name__ == "__main__":
    main()
