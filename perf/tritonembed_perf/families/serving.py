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

from tritonembed_perf.families.reference import Rows, write_rows
from tritonembed_perf.families.texts import KINDS


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

    settings = ModelSettings.model_validate({"model": job["folder"], "vllm": job["vllm"]})
    try:
        files = read_model_files(settings.model, settings.revision, settings.max_model_len)
        tokenizer, prompts = TextTokenizer(files), PromptLengths(files)
        executor = create_executor(settings, files, "cpu")
    except ModelError as error:
        return {"refused": str(error)}
    rows: dict[str, Rows] = {}
    problems: list[str] = []
    for kind, texts in KINDS.items():
        rows[kind] = _embed(kind, texts, files, tokenizer, executor, prompts, problems)
    write_rows(Path(job["vectors"]), rows)
    return {"executor": executor.name, "texts": problems}


def _embed(
    kind: str,
    texts: tuple[str, ...],
    files: Any,
    tokenizer: Any,
    executor: Any,
    prompts: Any,
    problems: list[str],
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
        computed = executor.launch(TokenIds.join([answers[place][0] for place in batch]), skips).result()
        finished = vectors.finish(
            vectors.normalized(computed) if unit else computed, parameters, unit, files.truncate_dim
        )
        for place, row in zip(batch, finished, strict=True):
            found[place] = np.array(row, np.float32)
    return found


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
