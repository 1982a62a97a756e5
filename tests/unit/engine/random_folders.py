"""Random folders around one small transformer: valid and invalid contents of sentence-transformers' files."""

import functools
import inspect
import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tests.other_models import write_roberta

from tritonembed_perf.models import write_bert

HIDDEN = 32
MODES = ("cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")
OLD_KEYS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
SNAKE = {"LayerNorm": "layer_norm"}
SETTINGS = "sentence_bert_config.json"
SENTENCE = "config_sentence_transformers.json"
TEXT = {"method": "forward", "method_output_name": "last_hidden_state"}


@functools.cache
def activations() -> list[str]:
    """Full names of all classes of torch.nn that take no arguments, except Transformer."""
    names = []
    for kind in vars(torch.nn).values():
        if inspect.isclass(kind) and issubclass(kind, torch.nn.Module) and kind is not torch.nn.Transformer:
            try:
                kind()
            except Exception:
                continue
            names.append(f"{kind.__module__}.{kind.__name__}")
    return sorted(set(names))


def write_bases(root: Path) -> dict[str, Path]:
    """The transformers: a BERT and a RoBERTa of one layer, with small vocabularies."""
    bert = write_bert(root / "bert", layers=1, hidden=HIDDEN, heads=2, intermediate=64, weight_std=0.3)
    tokenizer = json.loads((bert / "tokenizer.json").read_text("utf-8"))
    tokenizer["model"]["vocab"] = {token: n for token, n in tokenizer["model"]["vocab"].items() if n < 3000}
    (bert / "tokenizer.json").write_text(json.dumps(tokenizer), "utf-8")
    roberta = write_roberta(root / "roberta", layers=1, hidden=HIDDEN, heads=2, intermediate=64, max_length=64)
    return {"bert": bert, "roberta": roberta}


@dataclass
class Draft:
    """A folder before it is written. files: by path; None for a missing file, str for a file that is not JSON.

    weights: by folder; the tensors, and whether they are pickled. transformer: the transformer's folder. style: which
    release's names the types have. odd: something is wrong or unusual. written: widths of the features so far.
    """

    rng: random.Random
    base: str = "bert"
    transformer: str = ""
    style: int = 2
    kinds: list[str] = field(default_factory=lambda: ["Transformer", "Pooling"])
    paths: list[str] = field(default_factory=lambda: ["", "1_Pooling"])
    pooling: dict[str, Any] = field(default_factory=lambda: {"word_embedding_dimension": HIDDEN})
    settings: dict[str, Any] = field(default_factory=lambda: {"max_seq_length": 24})
    sentence: dict[str, Any] = field(default_factory=dict)
    tokenizer: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    files: dict[str, Any] = field(default_factory=dict)
    weights: dict[str, tuple[dict[str, torch.Tensor], bool]] = field(default_factory=dict)
    odd: bool = False
    written: dict[str, int] = field(default_factory=dict)
    modules: Callable[[list[dict[str, Any]]], Any] = lambda modules: modules

    @property
    def width(self) -> int:
        """Width of the pooled vector."""
        given = self.pooling.get("pooling_mode")
        if given is None:
            return max(1, sum(bool(self.pooling.get(key)) for key in OLD_KEYS)) * HIDDEN
        return HIDDEN if isinstance(given, str) else len(given) * HIDDEN

    @property
    def features(self) -> dict[str, int]:
        """Widths of the vectors that the modules so far write."""
        self.written.setdefault("sentence_embedding", self.width)
        return self.written

    def type_of(self, kind: str) -> str:
        """The class as a release named it."""
        snake = SNAKE.get(kind, kind.lower())
        home = "base.modules" if kind in ("Transformer", "Dense", "Normalize") else "sentence_transformer.modules"
        return (
            f"sentence_transformers.models.{kind}",
            f"sentence_transformers.models.{kind}.{kind}",
            f"sentence_transformers.{home}.{snake}.{kind}",
            f"sentence_transformers.sentence_transformer.modules.{snake}.{kind}"
            if kind in ("Pooling", "LayerNorm", "Dropout", "Normalize")
            else f"sentence_transformers.models.{kind}",
        )[self.style]

    def write(self, folder: Path, bases: dict[str, Path]) -> Path:
        """The folder on disk; the transformer's weights are a link."""
        base = bases[self.base]
        home = folder / self.transformer
        home.mkdir(parents=True)
        (home / "model.safetensors").symlink_to(base / "model.safetensors")
        (home / "tokenizer.json").symlink_to(base / "tokenizer.json")
        for name, changes in (("config.json", self.config), ("tokenizer_config.json", self.tokenizer)):
            (home / name).write_text(json.dumps(json.loads((base / name).read_text()) | changes))
        listed = [
            {"idx": n, "name": str(n), "path": path, "type": self.type_of(kind)}
            for n, (kind, path) in enumerate(zip(self.kinds, self.paths, strict=True))
        ]
        written = {
            "modules.json": self.modules(listed),
            "1_Pooling/config.json": self.pooling,
            f"{self.transformer}/{SETTINGS}".lstrip("/"): self.settings,
            SENTENCE: self.sentence,
            **self.files,
        }
        for name, value in written.items():
            if value is not None:
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / name).write_text(value if isinstance(value, str) else json.dumps(value))
        for name, (tensors, pickled) in self.weights.items():
            (folder / name).mkdir(exist_ok=True)
            if pickled:
                torch.save(tensors, folder / name / "pytorch_model.bin")
            else:
                save_file(tensors, folder / name / "model.safetensors")
        return folder


def pooling(draft: Draft) -> None:
    rng = draft.rng
    form = rng.randrange(3)
    if form == 0:
        draft.pooling |= {key: rng.random() < 0.4 for key in rng.sample(sorted(OLD_KEYS), rng.randint(1, 6))}
    elif form == 1:
        draft.pooling["pooling_mode"] = rng.choice(MODES)
    else:
        draft.pooling["pooling_mode"] = rng.choices(MODES, k=rng.randint(1, 3))
    if rng.random() < 0.5:
        draft.pooling["embedding_dimension"] = HIDDEN
        if rng.random() < 0.5:
            del draft.pooling["word_embedding_dimension"]


def leave_prompt_out(draft: Draft) -> None:
    draft.pooling["include_prompt"] = draft.rng.choice([False, False, None, True])
    draft.sentence["prompts"] = {"query": "find this: ", "passage": "text: ", "long": "so very much to say " * 8}


def odd_pooling(draft: Draft) -> None:
    draft.pooling |= draft.rng.choice(
        [
            {"pooling_mode": None},
            {"pooling_mode": 5},
            {"pooling_mode": {"mean": 1}},
            {"pooling_mode": "median"},
            {"pooling_mode": []},
            {"pooling_mode_cls_token": True, "pooling_mode": "max"},
            {"unknown_key": 1},
        ]
    )
    if draft.rng.random() < 0.15:
        draft.pooling.pop("word_embedding_dimension", None)


def add_step(draft: Draft, kind: str, config: dict[str, Any] | None) -> str:
    path = f"{len(draft.kinds)}_{kind}"
    draft.kinds.append(kind)
    draft.paths.append(path)
    draft.files[f"{path}/config.json"] = config
    return path


def tensor(draft: Draft, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(draft.rng.randrange(1 << 30))) * 0.5


def steps(draft: Draft) -> None:
    """Dense, LayerNorm, Normalize and Dropout in any order; the pooling does not change after it."""
    rng = draft.rng
    features = draft.features
    for _ in range(rng.randint(1, 4)):
        kind = rng.choice(["Dense", "Dense", "Normalize", "LayerNorm", "Dropout"])
        if kind == "Dense":
            dense(draft, features)
        elif kind == "Normalize":
            names: dict[str, Any] = {}
            if rng.random() < 0.3:
                names = {"module_input_name": rng.choice([*features, "sentence_embedding"])}
            if rng.random() < 0.2:
                names["module_output_name"] = rng.choice(["sentence_embedding", "other", None])
            source = names.get("module_input_name", "sentence_embedding")
            features[names.get("module_output_name") or source] = features[source]
            add_step(draft, kind, rng.choice([names, names, {**names, "odd": 1}]) if names else rng.choice([None, {}]))
        elif kind == "LayerNorm":
            now = features["sentence_embedding"]
            path = add_step(draft, kind, {"dimension": now})
            draft.weights[path] = (
                {"norm.weight": tensor(draft, now) + 1, "norm.bias": tensor(draft, now)},
                rng.random() < 0.5,
            )
        else:
            add_step(draft, kind, rng.choice([{"dropout": 0.3}, None, {}]))


def dense(draft: Draft, features: dict[str, int], activation: str | None = None) -> None:
    rng = draft.rng
    source = rng.choice([*features, "sentence_embedding", "sentence_embedding"])
    target = rng.choice([source, source, "sentence_embedding", "other"])
    width = features[source]
    out = rng.choice([width, 8, 16, 48])
    config: dict[str, Any] = {"in_features": width, "out_features": out}
    tensors = {"linear.weight": tensor(draft, out, width)}
    if rng.random() < 0.5:
        config["bias"] = rng.random() < 0.5
    if config.get("bias", True):
        tensors["linear.bias"] = tensor(draft, out)
    activation = activation or rng.choice(
        [
            "torch.nn.modules.activation.Tanh",
            "torch.nn.modules.linear.Identity",
            "torch.nn.modules.activation.GELU",
            "torch.nn.modules.activation.PReLU",
            "torch.nn.ReLU",
            "somebody.elses.Activation",
            "",
        ]
    )
    if activation:
        config["activation_function"] = activation
    if activation.endswith("PReLU"):
        tensors["activation_function.weight"] = torch.tensor([0.3])
    if rng.random() < 0.3:
        config["use_residual"] = True
        if out != width:
            tensors["residual.weight"] = tensor(draft, out, width)
    if source != "sentence_embedding" or rng.random() < 0.2:
        config["module_input_name"] = source
    if target != source or rng.random() < 0.2:
        config["module_output_name"] = target
    if rng.random() < 0.1:
        config["unknown_key"] = 1
    features[target] = out
    path = add_step(draft, "Dense", config)
    draft.weights[path] = (tensors, rng.random() < 0.5)


def every_activation(draft: Draft) -> None:
    dense(draft, draft.features, draft.rng.choice(activations()))


def odd_steps(draft: Draft) -> None:
    rng = draft.rng
    dense(draft, draft.features, "torch.nn.ReLU")
    path = draft.paths[-1]
    config, (tensors, pickled) = draft.files[f"{path}/config.json"], draft.weights[path]
    match rng.randrange(12):
        case 0:
            config["activation_function"] = rng.choice(
                ["torch.relu", "torch.nn.functional.relu", "torch.nn.None", None]
            )
        case 1:
            config["activation_function"] = "torch.nn.modules.activation.GLU"
        case 2:
            draft.weights[path] = ({**tensors, "more": torch.ones(1)}, pickled)
        case 3:
            draft.weights[path] = ({"linear.weight": tensors["linear.weight"]}, pickled)
        case 4:
            del draft.weights[path]
        case 5:
            draft.files[f"{path}/config.json"] = rng.choice([None, {}, "", "{"])
        case 6:
            config["module_input_name"] = rng.choice(["other", None, "", "token_embeddings"])
        case 7:
            config["module_output_name"] = rng.choice(["", "token_embeddings"])
        case 8:
            add_step(draft, "Normalize", {"module_input_name": rng.choice([None, "gone", "token_embeddings"])})
        case 9:
            add_step(draft, "Normalize", {"module_output_name": rng.choice(["", "token_embeddings", "attention_mask"])})
        case 10:
            add_step(draft, "LayerNorm", {"dimension": 5})
            draft.weights[draft.paths[-1]] = ({"norm.weight": torch.ones(5), "norm.bias": torch.ones(5)}, False)
        case _:
            add_step(draft, "LayerNorm", {"dimension": config["out_features"], "odd": 1})
            one = torch.ones(config["out_features"])
            draft.weights[draft.paths[-1]] = ({"norm.weight": one, "norm.bias": one.clone()}, False)


def settings(draft: Draft) -> None:
    """Settings of the transformer that change its vectors."""
    rng = draft.rng
    for change in rng.sample(
        [
            {"max_seq_length": rng.choice([5, 12, 64, 400 if draft.base == "bert" else 40, None])},
            {"do_lower_case": True},
            {"processor_kwargs": {"model_max_length": 9}},
            {"tokenizer_args": {"truncation_side": "left"}},
            {"tokenizer_args": {"do_lower_case": False}},
            {"processor_kwargs": {"strip_accents": False, "tokenize_chinese_chars": False}},
            {"processor_kwargs": {"add_prefix_space": True}},
            {"processor_kwargs": {"padding_side": "left", "use_fast": False}},
            {"processing_kwargs": {"text": {"max_length": 10}}},
            {"processing_kwargs": {"text": {"max_length": 10}, "common": {"max_length": 7}}},
            {"processing_kwargs": {"text": {"truncation": True, "padding": "longest"}}},
            {"query_length": 6, "document_length": 30},
            {"query_length": 5},
            {"document_length": 50},
            {"modality_config": {"text": TEXT}, "module_output_name": "token_embeddings"},
            {"modality_config": {"text": {**TEXT, "method_output_name": ["last_hidden_state"]}}}
            | {"module_output_name": "token_embeddings"},
            {"transformer_task": "feature-extraction"},
            {"unpad_inputs": False},
            {"model_args": {"attn_implementation": "eager"}},
            {"model_kwargs": {"add_pooling_layer": False}},
            {"config_kwargs": {"use_cache": False}},
            {"tokenizer_name_or_path": None},
        ],
        rng.randint(1, 3),
    ):
        draft.settings |= change
    if rng.random() < 0.2:
        draft.settings.pop("max_seq_length", None)
    if rng.random() < 0.2:
        old = rng.choice(["roberta", "distilbert", "xlm-roberta"])
        draft.files[f"sentence_{old}_config.json"] = draft.settings
        draft.settings = {}


def odd_settings(draft: Draft) -> None:
    draft.settings |= draft.rng.choice(
        [
            {"max_seq_length": 1},
            {"max_seq_length": 2},
            {"max_seq_length": 3},
            {"max_seq_length": 0},
            {"max_seq_length": -1},
            {"max_seq_length": "24"},
            {"max_seq_length": True},
            {"max_seq_length": float("nan")},
            {"max_seq_length": float("inf")},
            {"query_length": 0},
            {"query_length": 2},
            {"unknown": 1},
            {"processor_kwargs": {"odd": 1}},
            {"processor_kwargs": None},
            {"processor_kwargs": []},
            {"processor_kwargs": {"truncation_side": "left"}, "tokenizer_args": {"truncation_side": "right"}},
            {"tokenizer_args": {"model_max_length": 9}, "processor_kwargs": {"model_max_length": 14}},
            {"processing_kwargs": {"text": {"truncation": None}}},
            {"processing_kwargs": {"text": {"truncation": False}}},
            {"processing_kwargs": {"text": {"truncation": "only_second"}}},
            {"processing_kwargs": {"text": {"max_length": None}}, "query_length": 6},
            {"processing_kwargs": {"text": {"add_special_tokens": False}}},
            {"processing_kwargs": {"text": {"padding": "max_length"}}},
            {"processing_kwargs": {"text": {"padding": "max_length", "return_attention_mask": False}}},
            {"processing_kwargs": {"text": {"pad_to_multiple_of": 16}}},
            {"processing_kwargs": {"text": {"return_token_type_ids": False}}},
            {"processing_kwargs": {"text": {"return_attention_mask": False}}},
            {"processing_kwargs": {"common": {"return_tensors": "np"}}},
            {"modality_config": {"text": TEXT}},
            {"modality_config": None},
            {"modality_config": []},
            {"modality_config": {}},
            {"modality_config": {"text": None}, "module_output_name": "token_embeddings"},
            {"modality_config": {"text": {**TEXT, "method_output_name": "pooler_output"}}}
            | {"module_output_name": "sentence_embedding"},
            {"modality_config": {"text": {**TEXT, "method_output_name": ["hidden_states", 0]}}}
            | {"module_output_name": "token_embeddings"},
            {"module_output_name": "elsewhere"},
            {"transformer_task": "fill-mask"},
            {"transformer_task": "odd"},
            {"query_expansion": {"strategy": "fixed", "length": 8}},
            {"config_kwargs": {"num_hidden_layers": 0}},
            {"model_kwargs": {"odd": 1}},
        ]
    )


def prompts(draft: Draft) -> None:
    rng = draft.rng
    draft.sentence |= rng.choice(
        [
            {"prompts": {"query": "query: ", "document": "doc: "}},
            {"prompts": {"query": "query: ", "passage": "passage: "}},
            {"prompts": {"corpus": "corpus: "}},
            {"prompts": {"document": None, "corpus": "corpus: "}},
            {"prompts": {"query": None, "sts": "sts: "}, "default_prompt_name": "sts"},
            {"prompts": {"query": ""}, "default_prompt_name": "query"},
            {"default_prompt_name": "document"},
            {"prompts": {}, "default_prompt_name": None},
        ]
    )
    draft.sentence |= rng.choice(
        [{}, {"truncate_dim": 10}, {"truncate_dim": 500}, {"truncate_dim": None}, {"similarity_fn_name": "dot"}]
    )
    draft.sentence |= rng.choice([{}, {"model_type": "SentenceTransformer", "__version__": {}}, {"unknown": [1]}])


def odd_prompts(draft: Draft) -> None:
    draft.sentence |= draft.rng.choice(
        [
            {"prompts": None},
            {"prompts": []},
            {"prompts": {"query": 5}},
            {"prompts": {"query": ["a"]}},
            {"prompts": {"query": "q: "}, "default_prompt_name": "gone"},
            {"default_prompt_name": ""},
            {"truncate_dim": 0},
            {"truncate_dim": -2},
            {"truncate_dim": "8"},
            {"model_type": "SparseEncoder"},
            {"model_type": "SomethingNew", "prompts": {"query": "q: "}, "default_prompt_name": "query"},
            {"model_type": None},
            {"requirements": {"sentence-transformers": ">=99"}},
        ]
    )


def tokenizer(draft: Draft) -> None:
    draft.tokenizer |= draft.rng.choice(
        [
            {"truncation_side": "left"},
            {"padding_side": "left"},
            {"model_max_length": 11},
            {"model_max_length": 10**30 if draft.base == "bert" else 60},
            {"do_lower_case": False},
            {"strip_accents": False},
        ]
    )


def layout(draft: Draft) -> None:
    rng = draft.rng
    match rng.randrange(8):
        case 0 | 1:
            draft.transformer = draft.paths[0] = "0_Transformer"
        case 2 | 3:
            draft.files["modules.json"] = None
        case 4:
            draft.style = rng.randrange(4)
            draft.modules = lambda modules: modules[::-1]
        case 5:
            draft.modules = rng.choice(
                [
                    lambda modules: [],
                    lambda modules: {},
                    lambda modules: [{key: one[key] for key in one if key != "name"} for one in modules],
                    lambda modules: [{**one, "name": "same"} for one in modules],
                    lambda modules: [{**one, "name": "a.b"} for one in modules],
                    lambda modules: [{**modules[0], "kwargs": ["task"]}, *modules[1:]],
                    lambda modules: [{**one, "type": one["type"].replace(".models", "").lower()} for one in modules],
                    lambda modules: [{**one, "type": "sentence_transformers.nowhere.Pooling"} for one in modules],
                    lambda modules: [{**one, "path": f"../{one['path']}"} for one in modules],
                ]
            )
        case 6:
            draft.files[rng.choice(["1_Pooling/config.json", SETTINGS, SENTENCE])] = rng.choice([None, {}, "", "[]"])
        case _:
            draft.config |= rng.choice(
                [{"is_decoder": True}, {"output_hidden_states": True}, {"architectures": None}, {"return_dict": False}]
            )


SOUND = (pooling, leave_prompt_out, steps, every_activation, settings, prompts, tokenizer)
ODD = (odd_pooling, odd_steps, odd_settings, odd_prompts, layout)


def draft_of(number: int) -> Draft:
    """The folder for this number: sound settings and, in every third folder, something odd."""
    rng = random.Random(number)
    draft = Draft(rng, base=rng.choice(["bert", "bert", "roberta"]), style=rng.randrange(4))
    changes = rng.sample(SOUND, rng.randint(1, 4))
    # Widths follow from the pooling.
    for change in sorted(changes, key=SOUND.index):
        change(draft)
    if number % 3 == 0:
        draft.odd = True
        ODD[number // 3 % len(ODD)](draft)
    return draft
