"""Compare a model with its reference and report every case, for `tritonembed-manager verify`.

It runs in a process of its own, `python -m tritonembed_engine.verify`, because vLLM prints a lot and frees little.
"""

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tritonembed_engine.errors import ModelError

if TYPE_CHECKING:
    from tritonembed_engine.executors.base import Executor
    from tritonembed_engine.model.files import ModelFiles
    from tritonembed_engine.reference.cases import Case, Reference, Vectors
    from tritonembed_engine.settings import ModelSettings


def verify(settings_json: dict[str, Any], device: str, write: Path | None) -> dict[str, Any]:
    """The report: executor, source, allowed, swaps, rows of case, tokens and distance; of a quantized model `nearest`.

    A distance is 1 - cosine, or if `of_scores` a difference in standard deviations of the logits. Quantized vectors are
    right if enough of the ten nearest of texts stay those of float32, whatever the distances.

    settings_json: the contents of model.json. write: a file for the reference. Raises ModelError.
    """
    from tritonembed_engine.factory import choose_reference, create_executor
    from tritonembed_engine.model.files import read_model_files
    from tritonembed_engine.quantization import is_quantized
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
    reference = without_refused(reference, executor.refused_id)
    verdict = compare(executor, reference, executor.dtype, padded=executor.name in ("openvino", "transformers"))
    nearest = None
    if not reference.of_scores and is_quantized(settings, files):
        nearest = _nearest(executor, reference, settings, files)
    rows = [
        {"case": case.name, "tokens": case.tokens, "distance": float(distance)}
        for case, distance in zip(reference.cases, verdict.distances, strict=True)
    ]
    return {
        "executor": executor.name,
        "source": reference.source,
        "dtype": executor.dtype,
        "quantization": settings.vllm.get("quantization"),
        "allowed": verdict.allowed,
        "of_scores": reference.of_scores,
        "swaps": verdict.swaps,
        "nearest": nearest,
        "right": verdict.is_right if nearest is None else nearest["kept"] >= nearest["asked"],
        "rows": rows,
    }


def _nearest(
    executor: "Executor", reference: "Reference", settings: "ModelSettings", files: "ModelFiles"
) -> dict[str, Any]:
    """kept: the share of the ten nearest that stay those of float32. texts: the number of texts. asked: the least
    share.

    The texts are a given reference's; else the calibration texts, whose vectors transformers computes here. Raises
    ModelError if these are too few.
    """
    from tritonembed_engine.quantization import FEWEST_TEXTS, overlap
    from tritonembed_engine.reference.check import vectors_of

    cases, expected = reference.cases, reference.vectors
    if settings.engine.reference == "auto":
        cases, expected = _calibration(settings, files)
    elif len(cases) < FEWEST_TEXTS:
        raise ModelError(
            f"the reference has {len(cases)} texts, at least {FEWEST_TEXTS} are needed for a quantized model, whose"
            " nearest texts are compared"
        )
    found = vectors_of(executor, [[case] for case in cases])
    kept = overlap(found[:, : expected.shape[1]], expected)
    return {"kept": kept, "texts": len(cases), "asked": settings.engine.quantization_quality}


def _calibration(settings: "ModelSettings", files: "ModelFiles") -> "tuple[list[Case], Vectors]":
    from tritonembed_engine.openvino_quantization import calibration_ids
    from tritonembed_engine.reference.cases import Case
    from tritonembed_engine.reference.oracle import Oracle

    cases = [Case("calibration", ids) for ids in calibration_ids(settings.engine.calibration, files)]
    oracle = Oracle(settings.model, settings.revision, files, bool(settings.vllm.get("trust_remote_code")))
    return cases, oracle.embed(cases)


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
