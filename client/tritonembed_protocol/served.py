"""A served model, and the names of the Triton models that it consists of."""

import re
from dataclasses import dataclass
from typing import Literal

Task = Literal["embed", "score"]
"""What a model does: vectors of texts, or scores of pairs and texts (rerankers and classifiers)."""
FIRST = "embedding"
"""The first model of a server. It has no other name for Triton, so clients of one model need to know none."""
FIRST_SCORE = "rerank"
"""The first model of a server, if it scores."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_RESERVED = ("embedding_chunks", "embedder", "tokenizer", "scorer", "classify")
_SUFFIXES = ("_tokenizer", "_embedder", "_chunks", "_scorer", "_classify")


@dataclass(frozen=True)
class ServedModel:
    """A model that a server serves. name: of its ensemble, which takes texts, or queries and texts; `embedding` or
    `rerank` for the first model."""

    name: str = FIRST
    task: Task = "embed"
    base: str = ""
    """For an adapter: the name of its base model, whose Triton models compute it, by the parameter `adapter`."""

    @property
    def is_first(self) -> bool:
        """Whether it is the first model of its server."""
        return not self.base and self.name == (FIRST if self.task == "embed" else FIRST_SCORE)

    @property
    def tokenizer(self) -> str:
        """The Triton model from texts to token ids."""
        return "tokenizer" if self.is_first else f"{self.name}_tokenizer"

    @property
    def embedder(self) -> str:
        """The Triton model from token ids to vectors or scores; its instances are the replicas."""
        kind = "embedder" if self.task == "embed" else "scorer"
        return kind if self.is_first else f"{self.name}_{kind}"

    @property
    def chunks(self) -> str:
        """The ensemble from texts to the vectors of their chunks."""
        return f"{self.name}_chunks"

    @property
    def classify(self) -> str:
        """The ensemble from texts to their scores, of a model that scores."""
        return "classify" if self.is_first else f"{self.name}_classify"

    @property
    def output(self) -> str:
        """The output tensor of its ensemble."""
        return "embedding" if self.task == "embed" else "score"

    @property
    def triton_models(self) -> tuple[str, ...]:
        """The names of all its Triton models."""
        return self.tokenizer, self.embedder, self.name, self.chunks if self.task == "embed" else self.classify

    def of_alias(self, alias: str, name: str) -> str | None:
        """The Triton model that `name` is if the model is called `alias`: the model itself, or a part of it."""
        known = dict(zip(ServedModel(alias or "?", self.task).triton_models, self.triton_models, strict=True))
        return known.get(name)

    def of_part(self, name: str, other: "ServedModel") -> str:
        """The Triton model that is to this model what `name` is to the other."""
        return dict(zip(other.triton_models, self.triton_models, strict=True))[name]

    @property
    def with_vectors(self) -> tuple[str, ...]:
        """The models that answer with vectors or scores."""
        return self.name, self.chunks if self.task == "embed" else self.classify, self.embedder


FIRST_MODEL = ServedModel()
FIRST_OF_TASK: dict[Task, ServedModel] = {"embed": FIRST_MODEL, "score": ServedModel(FIRST_SCORE, "score")}


def reason_against_name(name: str) -> str | None:
    """Why a model can't have this name; None if it can. The name is a folder's, and part of three more."""
    if not _NAME.fullmatch(name):
        return "a name has 1 to 100 letters, digits, '-', '.' and '_', and begins with a letter or a digit"
    if name in _RESERVED:
        return f"{name} is a part of the model {FIRST}"
    if name.endswith(_SUFFIXES):
        return f"a name must not end with {', '.join(_SUFFIXES[:-1])} or {_SUFFIXES[-1]}, as parts of models do"
    return None
