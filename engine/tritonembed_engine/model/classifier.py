"""Rerankers and classifiers: the head of a model with a score per label, as a pooling and steps after it.

The layouts are those of transformers' classes named …ForSequenceClassification, and Qwen3-Reranker's, whose score is
the logit of the token "yes" minus that of "no" (https://huggingface.co/Qwen/Qwen3-Reranker-0.6B).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from tritonembed_engine.errors import ModelError
from tritonembed_engine.model.folder import read_json, read_object
from tritonembed_engine.model.modules import Pooling, Step, modules_in_order

SUFFIX = "ForSequenceClassification"

_LINEAR = "torch.nn.modules.linear.Identity"
_TANH = "torch.nn.modules.activation.Tanh"
_ACTIVATIONS = {
    "gelu": "torch.nn.modules.activation.GELU",
    "relu": "torch.nn.modules.activation.ReLU",
    "silu": "torch.nn.modules.activation.SiLU",
    "tanh": _TANH,
    "gelu_new": "transformers.activations.NewGELUActivation",
    "gelu_pytorch_tanh": "transformers.activations.GELUTanh",
}
"""Activations by transformers' names."""

_WITH_TOKEN_TYPES = {"bert": 2, "albert": 2, "electra": 2}
"""Model types with more than one kind of token, and the number that a config.json without `type_vocab_size` means."""


class Activation(str, Enum):
    """What makes a score of a logit."""

    NONE = "none"
    SIGMOID = "sigmoid"
    SOFTMAX = "softmax"
    """Over the labels of one text or pair."""


_ACTIVATION_OF = {
    "torch.nn.modules.linear.Identity": Activation.NONE,
    "torch.nn.modules.activation.Sigmoid": Activation.SIGMOID,
    "torch.nn.modules.activation.Softmax": Activation.SOFTMAX,
}


@dataclass(frozen=True)
class PairTemplate:
    """A pair as one text. before, after: not cut, and not part of the query or the text. instruction: the default.

    query, text: as the model reads them, with `{instruction}`, `{query}` and `{text}` in them. Between the two the
    tokenizer divides the whole.
    """

    before: str
    query: str
    text: str
    after: str
    instruction: str

    def fill_query(self, query: str, instruction: str | None) -> str:
        """The query's part."""
        before, _, rest = self.query.partition("{instruction}")
        middle, _, after = rest.partition("{query}")
        return "".join((before, self.instruction if instruction is None else instruction, middle, query, after))

    def fill_text(self, text: str) -> str:
        """The text's part."""
        before, _, after = self.text.partition("{text}")
        return before + text + after


QWEN3_RERANKER = PairTemplate(
    before="<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct"
    ' provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n',
    query="<Instruct>: {instruction}\n<Query>: {query}\n<Document>:",
    text=" {text}",
    after="<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",
    instruction="Given a web search query, retrieve relevant passages that answer the query",
)
"""The template on the model's card."""


@dataclass(frozen=True)
class Classifier:
    """From token vectors to logits: float32 [texts or pairs, labels].

    labels: in the order of the logits. activation: the model's own. token_types: how many kinds of tokens it knows: 2
    if the second text of a pair is marked. answers: the ids of yes and no, of a model that generates one of them; its
    logit is that of yes minus that of no. template: of pairs; None if the tokenizer has its own.
    """

    pooling: Pooling
    steps: tuple[Step, ...]
    labels: tuple[str, ...]
    activation: Activation
    token_types: int = 1
    answers: tuple[int, int] | None = None
    template: PairTemplate | None = None


def is_classifier(config: Mapping[str, Any], folder: Path) -> bool:
    """Whether a folder is a reranker or a classifier. config: its config.json."""
    names = _modules(folder)
    if _architecture(config).endswith(SUFFIX):
        # An embedder can be saved with the head that it was trained with; then its modules have a pooling.
        return names is None or names == ["Transformer"]
    if names is not None:
        return names == ["Transformer", "LogitScore"]
    # A generating model without other files. Only the name distinguishes a reranker from a chat model.
    named = f"{folder.name} {config.get('_name_or_path', '')}".lower()
    return _architecture(config) == "Qwen3ForCausalLM" and "rerank" in named


def read_classifier(config: Mapping[str, Any], folder: Path, transformer: Path, width: int) -> Classifier:
    """The head of a folder for which `is_classifier` holds. transformer: the folder of its weights. width: of a token.

    Raises ModelError for a head that is not known.
    """
    if not _architecture(config).endswith(SUFFIX):
        return _yes_or_no(config, folder, transformer, width)
    labels = _labels(config)
    family = _architecture(config).removesuffix(SUFFIX)
    if family not in _HEADS:
        raise ModelError(f"the head of a {_architecture(config)} is not known")
    pooling, steps = _HEADS[family](_Head(transformer, width, len(labels)), config)
    kind = str(config.get("model_type"))
    types = int(config.get("type_vocab_size", _WITH_TOKEN_TYPES[kind])) if kind in _WITH_TOKEN_TYPES else 1
    template = QWEN3_RERANKER if family == "Qwen3" else None
    activation = _own_activation(config, folder, len(labels))
    return Classifier(pooling, steps, labels, activation, types, template=template)


def reason_against_types(config: Mapping[str, Any], classifier: Classifier | None) -> str | None:
    """Why vLLM can't serve a classifier's pairs, but transformers can; None if it can."""
    kind = config.get("model_type")
    if classifier is not None and classifier.token_types > 1 and kind != "bert":
        return f"vLLM's {kind} does not mark the second text of a pair (token types)"
    return None


def _yes_or_no(config: Mapping[str, Any], folder: Path, transformer: Path, width: int) -> Classifier:
    if _architecture(config) != "Qwen3ForCausalLM":
        raise ModelError(f"a {_architecture(config)} that generates its answer is not known as a reranker")
    score = read_object(folder / _path_of_score(folder) / "config.json")
    yes, no = score.get("true_token_id"), score.get("false_token_id")
    if not score:
        vocabulary = _vocabulary(transformer)
        yes, no = vocabulary.get("yes"), vocabulary.get("no")
    if not isinstance(yes, int) or not isinstance(no, int):
        raise ModelError("the ids of the tokens for yes and no are not known")
    tensor = "model.embed_tokens" if config.get("tie_word_embeddings", True) else "lm_head"
    step = Step("Dense", folder=transformer, width=width, out_width=1, bias=False, tensor=tensor, rows=(yes, no))
    activation = _own_activation(config, folder, 1)
    return Classifier(Pooling.LAST_TOKEN, (step,), ("yes",), activation, answers=(yes, no), template=QWEN3_RERANKER)


def _modules(folder: Path) -> list[str] | None:
    """The names of sentence-transformers' modules; None if there are none."""
    listed = read_json(folder / "modules.json")
    return None if listed is None else [name for name, _ in modules_in_order(listed)]


def _path_of_score(folder: Path) -> str:
    listed = modules_in_order(read_json(folder / "modules.json") or [])
    return next((path for name, path in listed if name == "LogitScore"), "no_such_module")


def _vocabulary(folder: Path) -> dict[str, Any]:
    tokenizer = read_object(folder / "tokenizer.json")
    added = {str(token.get("content")): token.get("id") for token in tokenizer.get("added_tokens", ())}
    own = tokenizer.get("model", {}).get("vocab") or read_object(folder / "vocab.json")
    return {**own, **added} if isinstance(own, dict) else added


@dataclass(frozen=True)
class _Head:
    """Makes the steps of a head. weights: the folder of the checkpoint."""

    weights: Path
    width: int
    labels: int

    def hidden(self, tensor: str, activation: str, bias: bool = True) -> Step:
        """A product of the model's own width. tensor: its name in the checkpoint, without `.weight`."""
        return self._dense(tensor, self.width, activation, bias)

    def out(self, tensor: str, bias: bool = True) -> Step:
        """The last product."""
        return self._dense(tensor, self.labels, _LINEAR, bias)

    def norm(self, tensor: str, eps: float, bias: bool) -> Step:
        """A LayerNorm."""
        return Step(
            "LayerNorm", folder=self.weights, width=self.width, out_width=self.width, bias=bias, eps=eps, tensor=tensor
        )

    def _dense(self, tensor: str, out_width: int, activation: str, bias: bool) -> Step:
        return Step(
            "Dense",
            folder=self.weights,
            width=self.width,
            out_width=out_width,
            bias=bias,
            activation=activation,
            tensor=tensor,
        )


_Parts = tuple[Pooling, tuple[Step, ...]]


def _by_pooler(prefix: str) -> Callable[[_Head, Mapping[str, Any]], _Parts]:
    """BERT's: a product with tanh over the first token, and another one."""

    def head(make: _Head, _: Mapping[str, Any]) -> _Parts:
        return Pooling.CLS, (make.hidden(prefix, _TANH), make.out("classifier"))

    return head


def _in_classifier(activation: str) -> Callable[[_Head, Mapping[str, Any]], _Parts]:
    """RoBERTa's: the same two products, under the classifier's names."""

    def head(make: _Head, _: Mapping[str, Any]) -> _Parts:
        return Pooling.CLS, (make.hidden("classifier.dense", activation), make.out("classifier.out_proj"))

    return head


def _distilbert(make: _Head, _: Mapping[str, Any]) -> _Parts:
    return Pooling.CLS, (make.hidden("pre_classifier", _ACTIVATIONS["relu"]), make.out("classifier"))


def _deberta(make: _Head, config: Mapping[str, Any]) -> _Parts:
    if config.get("pooler_hidden_size", make.width) != make.width:
        raise ModelError("a pooler_hidden_size that is not hidden_size can't be served")
    activation = _activation(config.get("pooler_hidden_act", "gelu"))
    return Pooling.CLS, (make.hidden("pooler.dense", activation), make.out("classifier"))


def _modernbert(make: _Head, config: Mapping[str, Any]) -> _Parts:
    try:
        pooling = {"cls": Pooling.CLS, "mean": Pooling.MEAN}[config.get("classifier_pooling", "cls")]
    except KeyError:
        raise ModelError("classifier_pooling in config.json is neither cls nor mean") from None
    activation = _activation(config.get("classifier_activation", "gelu"))
    return pooling, (
        make.hidden("head.dense", activation, bias=bool(config.get("classifier_bias", False))),
        make.norm("head.norm", float(config.get("norm_eps", 1e-5)), bias=bool(config.get("norm_bias", False))),
        make.out("classifier"),
    )


def _last_token(make: _Head, _: Mapping[str, Any]) -> _Parts:
    return Pooling.LAST_TOKEN, (make.out("score", bias=False),)


_HEADS: dict[str, Callable[[_Head, Mapping[str, Any]], _Parts]] = {
    "Bert": _by_pooler("bert.pooler.dense"),
    "Albert": _by_pooler("albert.pooler"),
    "New": _by_pooler("new.pooler.dense"),
    "Roberta": _in_classifier(_TANH),
    "XLMRoberta": _in_classifier(_TANH),
    "Camembert": _in_classifier(_TANH),
    "MPNet": _in_classifier(_TANH),
    "Electra": _in_classifier(_ACTIVATIONS["gelu"]),
    "DistilBert": _distilbert,
    "DebertaV2": _deberta,
    "ModernBert": _modernbert,
    "Qwen3": _last_token,
    "Qwen2": _last_token,
    "Llama": _last_token,
    "Mistral": _last_token,
    "Gemma": _last_token,
    "Gemma2": _last_token,
}
"""Heads by the class's name without its suffix."""


def _architecture(config: Mapping[str, Any]) -> str:
    return str((config.get("architectures") or [""])[0])


def _activation(name: Any) -> str:
    if name not in _ACTIVATIONS:
        raise ModelError(f"the activation {str(name)[:40]!r} of the classifier is not known")
    return _ACTIVATIONS[name]


def _labels(config: Mapping[str, Any]) -> tuple[str, ...]:
    given = config.get("id2label")
    if isinstance(given, Mapping) and given:
        try:
            by_number = {int(number): str(label) for number, label in given.items()}
        except ValueError:
            raise ModelError("id2label in config.json has a key that is no number") from None
        if sorted(by_number) != list(range(len(given))):
            raise ModelError(f"id2label in config.json does not number its {len(given)} labels from 0")
        return tuple(by_number[number] for number in range(len(given)))
    # transformers' own default.
    return tuple(f"LABEL_{number}" for number in range(int(config.get("num_labels", 2))))


def _own_activation(config: Mapping[str, Any], folder: Path, labels: int) -> Activation:
    """The activation in the files. Else sigmoid for one label or labels that don't exclude each other, else softmax.

    sentence-transformers has no activation for several labels unless the files name one.
    """
    stated = config.get("sentence_transformers")
    named = (
        read_object(folder / "config_sentence_transformers.json").get("activation_fn")
        or (stated.get("activation_fn") if isinstance(stated, Mapping) else None)
        or config.get("sbert_ce_default_activation_function")
    )
    if named is not None:
        if named not in _ACTIVATION_OF:
            raise ModelError(f"the activation_fn {str(named)[:80]} is not one of {', '.join(_ACTIVATION_OF)}")
        return _ACTIVATION_OF[named]
    if labels == 1 or config.get("problem_type") == "multi_label_classification":
        return Activation.SIGMOID
    return Activation.SOFTMAX
