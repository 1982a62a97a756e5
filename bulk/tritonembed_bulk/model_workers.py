"""`--model`: the engine's executor in Ray actors, without Triton. Tokenizing is in tasks, on other cores."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from concurrent.futures import CancelledError
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tritonembed_bulk.parts import Ledger, Refused
from tritonembed_bulk.rows import Work, reason_of

if TYPE_CHECKING:
    from tritonembed_engine.executors.base import Executor
    from tritonembed_engine.model.files import ModelFiles
    from tritonembed_engine.parameters import EmbedParameters
    from tritonembed_engine.settings import ModelSettings
    from tritonembed_engine.tokenizing.text_tokenizer import TextTokenizer

NOT_FINITE = "the model computed a vector that is not finite"

MakeExecutor = Callable[["ModelSettings", "ModelFiles", str], "Executor"]


def create(settings: ModelSettings, files: ModelFiles, device: str) -> Executor:
    """The engine's own executor."""
    from tritonembed_engine.factory import create_executor

    return create_executor(settings, files, device)


@dataclass(frozen=True)
class ModelCompute:
    """How vectors are made of texts by an engine. Can be pickled.

    chunks: whether each chunk gets a vector, under `truncate=CHUNK`; else a text gets the mean of its chunks.
    make_executor: replaced by a simulation.
    """

    settings: ModelSettings
    parameters: EmbedParameters
    chunks: bool = False
    make_executor: MakeExecutor = create

    @property
    def embedding_type(self) -> str:
        """The type of the output's vectors."""
        return self.parameters.embedding_type

    def digest(self) -> str:
        """The embedding space without its precision, which only an actor knows. Raises Refused."""
        from tritonembed_engine.errors import InvalidArgument, ModelError
        from tritonembed_engine.model.space import embedding_space
        from tritonembed_engine.vectors import check_dimensions
        from tritonembed_protocol.space import model_part

        try:
            files = files_of(self.settings)
            check_dimensions(self.parameters.dimensions, files.dimensions)
            p = self.parameters
            files.prompt_for(p.input_type, p.prompt_name, p.prompt, p.instruction)
            return model_part(embedding_space(self.settings, files, ""))
        except (ModelError, InvalidArgument) as error:
            raise Refused(str(error)) from None

    def describe(self) -> dict[str, Any]:
        """Name and revision of the model, for files' metadata."""
        return {"model": files_of(self.settings).name, "revision": self.settings.revision or ""}

    def prepare(self, work: Work) -> Work:
        """Tokenize the texts."""
        from tritonembed_engine.chunks import unpack
        from tritonembed_engine.errors import InvalidArgument
        from tritonembed_engine.token_ids import TokenIds

        tokenizer = tokenizer_of(self.settings)
        answers = tokenizer.encode_requests([([text], self.parameters) for text in work.texts])
        reasons = {place: str(one) for place, one in enumerate(answers) if isinstance(one, InvalidArgument)}
        work.drop({place: reason_of(reason) for place, reason in reasons.items()})
        elements = [one[0] for one in answers if not isinstance(one, InvalidArgument)]
        if self.parameters.truncate == "CHUNK":
            parts = [unpack([element]) for element in elements]
            work.counts = np.array([len(ids) for ids, _ in parts], np.int64)
            offsets = [chunks.offsets for _, chunks in parts]
            work.offsets = np.concatenate(offsets) if offsets else np.empty((0, 2), np.int32)
            elements = [one for ids, _ in parts for one in ids]
        sentences = TokenIds.join(elements)
        work.ids, work.lengths, work.texts = sentences.ids, sentences.lengths, []
        return work

    def open(self, ledger: Ledger, device: str) -> ModelWorker:
        """Load the model. Raises Refused."""
        return ModelWorker(self, ledger, device)

    def finish(self, work: Work) -> Work:
        """Apply the means of chunks, `dimensions`, `normalize` and `embedding_type`."""
        from tritonembed_engine import vectors
        from tritonembed_engine.chunks import Chunks

        files = files_of(self.settings)
        assert work.vectors is not None
        wrong = np.flatnonzero(~np.isfinite(work.vectors).all(axis=1))
        if len(wrong):
            texts = wrong if work.counts is None else np.repeat(np.arange(len(work.counts)), work.counts)[wrong]
            work.drop({int(place): NOT_FINITE for place in texts})
        found: Any = work.vectors
        normalize = vectors.wants_unit_length(self.parameters, files.normalize)
        if normalize:
            found = vectors.normalized(found)
        found = vectors.cut(found, self.parameters, normalize, files.truncate_dim)
        if work.counts is not None and not self.chunks:
            assert work.lengths is not None
            assert work.offsets is not None
            if len(work.counts):
                chunks = Chunks(work.counts, work.offsets)
                found = chunks.means(found, work.lengths, normalize)
                work.lengths = chunks.sums(work.lengths)
            work.counts = work.offsets = None
        work.vectors = vectors.encode(found, self.parameters)
        return work


class ModelWorker:
    """An executor, in a separate process."""

    def __init__(self, compute: ModelCompute, ledger: Ledger, device: str) -> None:
        from tritonembed_engine.errors import InvalidArgument, ModelError
        from tritonembed_engine.model.space import embedding_space
        from tritonembed_engine.stub.process import prepare_process
        from tritonembed_engine.tokenizing.prompt_lengths import PromptLengths

        prepare_process(os.environ.get("CUDA_VISIBLE_DEVICES") if device == "cuda" else None)
        from tritonembed_bulk.batches import BatchRunner

        try:
            files = files_of(compute.settings)
            executor = compute.make_executor(compute.settings, files, device)
            self._skip = PromptLengths(files).skip(compute.parameters)
            self._space = embedding_space(compute.settings, files, executor.dtype)
        except (ModelError, InvalidArgument) as error:
            raise Refused(str(error)) from None
        ledger.claim_space(self._space)
        self._runner = BatchRunner(executor)

    def embed(self, work: Work) -> Work:
        """Compute the vectors of a tokenized part. From any thread."""
        from tritonembed_engine.errors import EmbedError
        from tritonembed_engine.token_ids import TokenIds

        assert work.ids is not None
        assert work.lengths is not None
        try:
            work.vectors, work.busy = self._runner.compute(TokenIds(work.ids, work.lengths), self._skip)
        except (EmbedError, CancelledError) as error:
            raise Refused(f"{work.part.name} can't be computed: {error}") from None
        work.space, work.ids = self._space, None
        return work


@functools.lru_cache(maxsize=2)
def _files_of(key: str) -> ModelFiles:
    from tritonembed_engine.model.files import read_model_files
    from tritonembed_engine.settings import ModelSettings

    settings = ModelSettings.model_validate_json(key)
    template = settings.engine.instruction_template
    return read_model_files(settings.model, settings.revision, settings.max_model_len, template)


def files_of(settings: ModelSettings) -> ModelFiles:
    """The model's files, read once per process. Raises ModelError."""
    return _files_of(settings.model_dump_json())


@functools.lru_cache(maxsize=2)
def _tokenizer_of(key: str) -> TextTokenizer:
    from tritonembed_engine.tokenizing.text_tokenizer import TextTokenizer

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    return TextTokenizer(_files_of(key))


def tokenizer_of(settings: ModelSettings) -> TextTokenizer:
    """The model's tokenizer, loaded once per process."""
    return _tokenizer_of(settings.model_dump_json())
