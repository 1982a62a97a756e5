"""Compare a model with its reference and report every case, for `tritonembed-manager verify`.

It runs in a process of its own, `python -m tritonembed_engine.verify`: vLLM prints a lot and frees little.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

from tritonembed_engine.errors import ModelError


def verify(settings_json: dict[str, Any], device: str, write: Path | None) -> dict[str, Any]:
    """The report: executor, source, allowed, swaps, and rows of case, tokens and distance.

    A distance is 1 - cosine, or if `of_scores` a difference in standard deviations of the logits.

    settings_json: the contents of model.json. write: a file for the reference. Raises ModelError.
    """
    from tritonembed_engine.factory import choose_reference, create_executor
    from tritonembed_engine.model.files import read_model_files
    from tritonembed_engine.reference.check import compare, without_refused
    from tritonembed_engine.settings import ModelSettings

    settings = ModelSettings.model_validate(settings_json)
    files = read_model_files(settings.model, settings.revision, settings.max_model_len)
    reference = choose_reference(settings, files)
    assert reference is not None
    if write is not None:
        reference.save(write)
    unchecked = settings.engine.model_copy(update={"reference": "off"})
    executor = create_executor(settings.model_copy(update={"engine": unchecked}), files, device)
    dtype = str(settings.vllm.get("dtype", "float32" if device == "cpu" else "bfloat16"))
    verdict = compare(executor, reference, dtype, padded=executor.name in ("openvino", "transformers"))
    cases = without_refused(reference, executor.refused_id).cases
    rows = [
        {"case": case.name, "tokens": case.tokens, "distance": float(distance)}
        for case, distance in zip(cases, verdict.distances, strict=True)
    ]
    return {
        "executor": executor.name,
        "source": reference.source,
        "dtype": dtype,
        "allowed": verdict.allowed,
        "of_scores": reference.of_scores,
        "swaps": verdict.swaps,
        "right": verdict.is_right,
        "rows": rows,
    }


def main() -> None:
    """Arguments: one JSON object of `settings`, `device`, `write`, `report` (a file). Exit code 1 for a ModelError."""
    given = json.loads(sys.argv[1])
    from tritonembed_engine.stub.process import prepare_process

    prepare_process(os.environ.get("CUDA_VISIBLE_DEVICES", "0") if given["device"] == "cuda" else None)
    write = Path(given["write"]) if given["write"] else None
    try:
        report = verify(given["settings"], given["device"], write)
    except ModelError as error:
        report = {"error": str(error)}
    Path(given["report"]).write_text(json.dumps(report))
    sys.stdout.flush()
    sys.stderr.flush()
    # vLLM's own shutdown takes seconds.
    os._exit("error" in report)


if __name__ == "__main__":
    main()
