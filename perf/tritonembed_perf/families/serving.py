"""The engine's vectors for one model folder, computed as in a server.

python -m tritonembed_perf.families.serving FOLDER vectors.npz
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tritonembed_perf.families.reference import KINDS, Rows, pair_of, write_rows


def prepare() -> None:
    """Import vLLM without starting threads that compute. A fork would lack OpenMP's."""
    # One thread, as in `reference`, and never the hub.
    os.environ.update(OMP_NUM_THREADS="1", VLLM_CPU_OMP_THREADS_BIND="nobind", HF_HUB_OFFLINE="1")
    from tritonembed_engine.stub.process import imports_that_stay, prepare_process

    prepare_process(None)
    with imports_that_stay():
        from vllm import LLM  # noqa: F401


def run(job: dict[str, Any]) -> dict[str, Any]:
    """Load a folder and embed the texts. job: "folder", "vllm" (engine arguments), "vectors" (.npz to write).

    Returns {"executor": its name, "texts": reasons why texts were refused} or {"refused": the engine's message}.
    """
    from tritonembed_engine.stub.process import prepare_process

    prepare_process(None)
    from tritonembed_engine.errors import ModelError
    from tritonembed_engine.factory import create_executor
    from tritonembed_engine.model.files import read_model_files
    from tritonembed_engine.settings import ModelSettings
    from tritonembed_engine.tokenizing.prompt_lengths import PromptLengths
    from tritonembed_engine.tokenizing.text_tokenizer import TextTokenizer
    from tritonembed_engine.tokenizing.token_choice import TokenChoice

    settings = ModelSettings.model_validate({"model": job["folder"], "vllm": job["vllm"]})
    try:
        files = read_model_files(settings.model, settings.revision, settings.max_model_len)
        if files.classifier is not None:
            return _run_classifier(settings, files, Path(job["vectors"]))
        tokenizer, prompts, choice = TextTokenizer(files), PromptLengths(files), TokenChoice(files)
        executor = create_executor(settings, files, "cpu")
    except ModelError as error:
        return {"refused": str(error)}
    rows: dict[str, Rows] = {}
    problems: list[str] = []
    for kind, texts in KINDS.items():
        rows[kind] = _embed(kind, texts, files, tokenizer, executor, prompts, problems, choice)
    write_rows(Path(job["vectors"]), rows)
    return {"executor": executor.name, "texts": problems}


def _run_classifier(settings: Any, files: Any, target: Path) -> dict[str, Any]:
    """Score the pairs and texts of `logits.pair_of`: one request each, many in a batch. Raises ModelError."""
    from tritonembed_engine.factory import create_executor
    from tritonembed_engine.scores import ScoreParameters
    from tritonembed_engine.token_ids import TokenIds
    from tritonembed_engine.tokenizing.pairs import PairTokenizer

    tokenizer, executor = PairTokenizer(files), create_executor(settings, files, "cpu")
    rows: dict[str, Rows] = {}
    problems: list[str] = []
    for kind, texts in KINDS.items():
        pairs = [pair_of(kind, text) for text in texts]
        jobs = [
            ([pair.encode()], None, ScoreParameters())
            if isinstance(pair, str)
            else ([pair[1].encode()], [pair[0].encode()], ScoreParameters())
            for pair in pairs
        ]
        answers = tokenizer.encode_requests(jobs)
        problems += [str(answer) for answer in answers if isinstance(answer, Exception)]
        good = [place for place, answer in enumerate(answers) if not isinstance(answer, Exception)]
        lengths = [len(answer[0]) // 4 for answer in answers if not isinstance(answer, Exception)]
        rows[kind] = [None] * len(texts)
        for batch in _batches(good, lengths, executor):
            sentences = [answer[0] for place in batch if not isinstance(answer := answers[place], Exception)]
            computed = executor.launch(TokenIds.join(sentences)).result()
            for place, row in zip(batch, computed, strict=True):
                rows[kind][place] = np.array(row, np.float32)
    write_rows(target, rows)
    return {"executor": executor.name, "texts": problems}


def _embed(
    kind: str,
    texts: tuple[str, ...],
    files: Any,
    tokenizer: Any,
    executor: Any,
    prompts: Any,
    problems: list[str],
    choice: Any,
) -> list[npt.NDArray[np.float32] | None]:
    """Embed the texts: one request per text, many texts in a batch."""
    from tritonembed_engine import vectors
    from tritonembed_engine.parameters import EmbedParameters
    from tritonembed_engine.token_ids import TokenIds

    parameters = EmbedParameters(input_type=None if kind == "plain" else kind)
    answers = tokenizer.encode_requests([([text.encode()], parameters) for text in texts])
    found: Rows = [None] * len(texts)
    good = [place for place, answer in enumerate(answers) if not isinstance(answer, Exception)]
    problems += [str(answer) for answer in answers if isinstance(answer, Exception)]
    skip = prompts.skip(parameters)
    unit = vectors.wants_unit_length(parameters, files.normalize)
    for batch in _batches(
        good, [len(answer[0]) // 4 for answer in answers if not isinstance(answer, Exception)], executor
    ):
        skips = [skip] * len(batch) if skip else None
        sentences = TokenIds.join([answers[place][0] for place in batch])
        asked = choice.outputs_of(parameters)
        if asked != ("dense",):
            outputs = choice.without_forward(parameters, sentences)
            if outputs is None:
                pending = executor.launch(sentences, None, None, choice.choose(parameters, asked, sentences))
                pending.result()
                outputs = pending.token_outputs
            for place, row in zip(batch, _flat(outputs[asked[0]], parameters, choice, files), strict=True):
                found[place] = row
            continue
        computed = executor.launch(sentences, skips).result()
        finished = vectors.finish(
            vectors.normalized(computed) if unit else computed, parameters, unit, files.truncate_dim
        )
        for place, row in zip(batch, finished, strict=True):
            found[place] = np.array(row, np.float32)
    return found


def _flat(output: Any, parameters: Any, choice: Any, files: Any) -> list[npt.NDArray[np.float32]]:
    """The form of `reference`: the weights of the whole vocabulary, or the vectors of tokens one after the other."""
    from tritonembed_engine import vectors

    if output.rows.dtype.names is None:
        elements = vectors.multi_vector_elements(output, parameters, choice.normalize)
        return [np.frombuffer(element, "<f4", offset=4) for element in elements]
    rows = []
    for start, stop in output.bounds():
        weights = np.zeros(files.vocab_size, np.float32)
        weights[output.rows["id"][start:stop]] = output.rows["weight"][start:stop]
        rows.append(weights)
    return rows


def _batches(places: list[int], lengths: list[int], executor: Any) -> list[list[int]]:
    batches: list[list[int]] = []
    room = 0
    for place, length in zip(places, lengths, strict=True):
        if not batches or length > room:
            batches.append([])
            room = executor.max_batch_tokens
        batches[-1].append(place)
        room -= length
    return batches


def main() -> None:
    """The command, for one folder."""
    folder, vectors, *more = sys.argv[1:]
    prepare()
    answer = run({"folder": folder, "vectors": vectors, "vllm": json.loads(more[0]) if more else {}})
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
