"""Modules other than Transformer, Pooling, Dense and Normalize."""

from pathlib import Path

from tritonembed_perf.families.bert import WIDTH, bert, mean_modules
from tritonembed_perf.families.registry import case
from tritonembed_perf.families.sentence import OLD, Module, dense, normalize, pooling, transformer, write_sentence_files
from tritonembed_perf.families.writing import write_json, write_weights

FAMILY = "BERT, other modules"


def layer_norm(width: int) -> Module:
    """sentence-transformers' LayerNorm over the sentence vector."""

    def write(folder: Path) -> None:
        import torch

        generator = torch.Generator().manual_seed(7)
        state = {f"norm.{name}": 1 + torch.randn(width, generator=generator) for name in ("weight", "bias")}
        write_json(folder / "config.json", {"dimension": width})
        write_weights(folder, state)

    return Module("LayerNorm", f"{OLD}LayerNorm", write)


def dropout() -> Module:
    """Dropout, which has no effect outside training."""
    return Module("Dropout", f"{OLD}Dropout", lambda folder: write_json(folder / "config.json", {"dropout": 0.2}))


@case(FAMILY)
def dense_layernorm(folder: Path) -> None:
    bert().write(folder)
    write_sentence_files(folder, mean_modules(dense(WIDTH, 32), layer_norm(32), normalize()))


@case(FAMILY)
def bert_layernorm(folder: Path) -> None:
    bert().write(folder)
    write_sentence_files(folder, mean_modules(layer_norm(WIDTH)))


@case(FAMILY)
def bert_dropout(folder: Path) -> None:
    bert().write(folder)
    write_sentence_files(folder, mean_modules(dropout(), normalize()))


@case(FAMILY)
def bert_normalize_twice(folder: Path) -> None:
    bert().write(folder)
    write_sentence_files(folder, mean_modules(normalize(), normalize()))


@case(FAMILY)
def bert_without_pooling(folder: Path) -> None:
    """No pooling: there are token vectors only, and no sentence vector to normalise."""
    bert().write(folder)
    write_sentence_files(folder, [transformer(), normalize()])


@case(FAMILY)
def bert_transformer_only(folder: Path) -> None:
    bert().write(folder)
    write_sentence_files(folder, [transformer()])


@case(FAMILY)
def bert_poolings_in_a_row(folder: Path) -> None:
    """Two poolings in a row: the second overwrites the vector of the first."""
    bert().write(folder)
    write_sentence_files(folder, [transformer(), pooling(WIDTH, "cls"), pooling(WIDTH, "mean"), normalize()])


@case(FAMILY)
def bert_no_modules_listed(folder: Path) -> None:
    bert().write(folder)
    write_sentence_files(folder, [])


@case(FAMILY)
def bert_unknown_module(folder: Path) -> None:
    """A class of the model's own, whose code is missing."""
    bert().write(folder)
    write_sentence_files(folder, mean_modules(Module("Whitening", "custom_st.Whitening"), normalize()))


@case(FAMILY)
def bert_wlp(folder: Path) -> None:
    """WeightedLayerPooling over the transformer's layers."""
    import torch

    def write(place: Path) -> None:
        write_json(place / "config.json", {"word_embedding_dimension": WIDTH, "layer_start": 1, "num_hidden_layers": 2})
        write_weights(place, {"layer_weights": torch.tensor([0.3, 0.7])})

    bert(output_hidden_states=True).write(folder)
    layers = Module("WeightedLayerPooling", f"{OLD}WeightedLayerPooling", write)
    write_sentence_files(folder, [transformer(), layers, pooling(WIDTH, "mean"), normalize()])


@case(FAMILY)
def word_embeddings(folder: Path) -> None:
    """GloVe's layout: a table of words and a mean, no transformer."""
    import torch

    def write(place: Path) -> None:
        words = ["the", "cat", "sat", "mat", "hello", "world", "quick", "brown", "fox"]
        tokenizer = "sentence_transformers.models.tokenizer.WhitespaceTokenizer.WhitespaceTokenizer"
        config = {"tokenizer_class": tokenizer, "update_embeddings": False, "max_seq_length": 1000}
        write_json(place / "wordembedding_config.json", config)
        settings = {"vocab": words, "stop_words": [], "do_lower_case": True}
        write_json(place / "whitespacetokenizer_config.json", settings)
        write_weights(place, {"emb_layer.weight": torch.randn(len(words), 32)})

    first = Module("WordEmbeddings", f"{OLD}WordEmbeddings", write)
    write_sentence_files(folder, [first, pooling(32, "mean")], max_length=None)


@case(FAMILY)
def bag_of_words(folder: Path) -> None:
    def write(place: Path) -> None:
        config = {"vocab": ["cat", "mat", "fox", "world"], "word_weights": {}, "unknown_word_weight": 1}
        write_json(place / "config.json", {**config, "cumulative_term_frequency": True})

    write_sentence_files(folder, [Module("BoW", f"{OLD}BoW", write)], max_length=None)
