"""BERT in other layouts: files of old releases, prefixes of weights, heads, vocabularies."""

import json
from pathlib import Path

from tritonembed_perf.families import vocabularies
from tritonembed_perf.families.bert import PROMPTS, WIDTH, bert, mean_modules
from tritonembed_perf.families.registry import case
from tritonembed_perf.families.sentence import normalize, pooling, transformer, write_sentence_files
from tritonembed_perf.families.writing import ModelParts, random_state, write_json

FAMILY = "BERT, layouts"


@case(FAMILY)
def bert_vocab_only(folder: Path) -> None:
    """vocab.txt instead of tokenizer.json."""
    model = bert()
    model.write(folder)
    vocabulary = model.tokenizer.get_vocab()
    (folder / "vocab.txt").write_text("".join(f"{word}\n" for word in sorted(vocabulary, key=vocabulary.__getitem__)))
    (folder / "tokenizer.json").unlink()
    write_sentence_files(folder, mean_modules(normalize()))


@case(FAMILY)
def bert_padded_vocab(folder: Path) -> None:
    """The table of words has more rows than there are tokens."""
    bert(vocab_size=vocabularies.BERT_VOCABULARY + 6).write(folder)
    write_sentence_files(folder, mean_modules(normalize()))


@case(FAMILY)
def bert_addedtokens(folder: Path) -> None:
    model = bert(vocab_size=vocabularies.BERT_VOCABULARY + 2)
    model.tokenizer.add_tokens(["bread", "seventeen owls"])
    model.write(folder)
    write_sentence_files(folder, mean_modules(normalize()))


@case(FAMILY)
def bert_posids(folder: Path) -> None:
    """The buffer `embeddings.position_ids`, which old releases saved."""
    import torch

    model = bert()
    model.state["embeddings.position_ids"] = torch.arange(128).unsqueeze(0)
    model.write(folder)
    write_sentence_files(folder, mean_modules(normalize()))


@case(FAMILY)
def bert_maskedlm_modules(folder: Path) -> None:
    _masked_lm().write(folder)
    write_sentence_files(folder, mean_modules(normalize()))


@case(FAMILY)
def bert_maskedlm_nomodules(folder: Path) -> None:
    """bert-base-uncased as the hub has it."""
    _masked_lm().write(folder)


@case(FAMILY)
def bert_maskedlm_bin(folder: Path) -> None:
    _masked_lm().write(folder, "bin")
    write_sentence_files(folder, mean_modules(normalize()))


@case(FAMILY)
def bert_pretraining(folder: Path) -> None:
    model = with_head("BertForPreTraining")
    model.write(folder)
    write_sentence_files(folder, mean_modules(normalize()))


@case(FAMILY)
def bert_prefixed(folder: Path) -> None:
    """Weights under `bert.` and position ids, as BertForPreTraining saved them; no head."""
    import torch

    model = bert(architectures=["BertForPreTraining"])
    model.state["embeddings.position_ids"] = torch.arange(128).unsqueeze(0)
    model.prefix("bert.")
    model.write(folder)
    write_sentence_files(folder, mean_modules(normalize()))


@case(FAMILY)
def bert_prefixed_model(folder: Path) -> None:
    """Weights under `bert.`, although config.json names BertModel."""
    model = bert()
    model.prefix("bert.")
    model.write(folder)
    write_sentence_files(folder, mean_modules(normalize()))


@case(FAMILY)
def bert_old_names(folder: Path) -> None:
    """LayerNorm's `gamma` and `beta`, as the first releases saved them."""
    model = bert()
    model.state = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor
        for name, tensor in model.state.items()
    }
    model.write(folder, "bin")
    write_sentence_files(folder, mean_modules(normalize()))


@case(FAMILY)
def bert_no_architectures(folder: Path) -> None:
    model = bert()
    del model.config["architectures"]
    model.write(folder)
    write_sentence_files(folder, mean_modules(normalize()))


@case(FAMILY)
def bert_old_0transformer(folder: Path) -> None:
    """The transformer is in a folder of its own."""
    _in_a_folder(folder, "Transformer", "sentence_transformers.models.Transformer")


@case(FAMILY)
def bert_old_0bert(folder: Path) -> None:
    """The oldest layout: a module named BERT."""
    _in_a_folder(folder, "BERT", "sentence_transformers.models.BERT")


@case(FAMILY)
def bert_st6_types(folder: Path) -> None:
    """Module types and settings as sentence-transformers 6 writes them."""
    bert().write(folder)
    places = {
        "Transformer": "sentence_transformers.base.modules.transformer.Transformer",
        "Pooling": "sentence_transformers.sentence_transformer.modules.pooling.Pooling",
        "Normalize": "sentence_transformers.base.modules.normalize.Normalize",
    }
    text = {"method": "forward", "method_output_name": "last_hidden_state"}
    write_sentence_files(
        folder,
        mean_modules(normalize()),
        max_length=None,
        settings={
            "transformer_task": "feature-extraction",
            "modality_config": {"text": text},
            "module_output_name": "token_embeddings",
        },
        prompts={"query": "query: ", "document": "passage: "},
        config={"model_type": "SentenceTransformer", "similarity_fn_name": "cosine", "default_prompt_name": None},
    )
    modules = json.loads((folder / "modules.json").read_text())
    for module in modules:
        module["type"] = places[module["type"].rpartition(".")[2]]
    write_json(folder / "modules.json", modules)
    pooling_config = {"embedding_dimension": WIDTH, "pooling_mode": "mean", "include_prompt": True}
    write_json(folder / "1_Pooling" / "config.json", pooling_config)


def _masked_lm() -> ModelParts:
    return with_head("BertForMaskedLM")


def with_head(model_class: str) -> ModelParts:
    """All weights of a class with a head, under the names with which it saves them."""
    model = bert(architectures=[model_class])
    model.state = random_state(model_class, model.config)
    return model


def _in_a_folder(folder: Path, kind: str, type: str) -> None:
    bert().write(folder / f"0_{kind}")
    write_sentence_files(
        folder, [transformer(type, kind), pooling(WIDTH, "mean"), normalize()], max_length=None, prompts=PROMPTS
    )
    write_json(folder / f"0_{kind}" / "sentence_bert_config.json", {"max_seq_length": 48, "do_lower_case": False})
