"""Triton's statistics over gRPC, and its trace files."""

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc

from tritonembed_perf.failures import UsageError
from tritonembed_perf.overhead.stages import EMBEDDER, ENSEMBLE, TOKENIZER, ModelTimes

MODELS = (ENSEMBLE, TOKENIZER, EMBEDDER)


def read_statistics(server: str) -> dict[str, Any]:
    """Each model's cumulative statistics. Raises UsageError where the server has none."""
    try:
        with grpc.insecure_channel(server) as channel:
            stub: Any = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            found = {}
            for name in MODELS:
                asked = service_pb2.ModelStatisticsRequest(name=name)
                versions = stub.ModelStatistics(asked, timeout=10).model_stats
                if not versions:
                    raise UsageError(f"{server} gives no statistics of {name}")
                found[name] = versions[0]
            return found
    except grpc.RpcError as error:
        status: Any = error
        raise UsageError(f"{server} gives no statistics of {', '.join(MODELS)}: {status.details()}") from None


def growth(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, ModelTimes]:
    """What was added between two readings, as means for each request."""
    grown = {}
    for name in MODELS:
        old, new = before[name].inference_stats, after[name].inference_stats
        requests = new.success.count - old.success.count
        if not requests:
            raise UsageError(f"{name} answered no request meanwhile")

        def mean(*fields: str, old: Any = old, new: Any = new, requests: int = requests) -> float:
            return float(sum(getattr(new, field).ns - getattr(old, field).ns for field in fields)) / requests

        compute = ("compute_input", "compute_infer", "compute_output")
        grown[name] = ModelTimes(int(requests), mean("success"), mean("queue"), mean(*compute))
    return grown


def read_traces(folder: Path) -> dict[str, dict[str, dict[str, int]]]:
    """The moments of each request id and model in all trace files of a folder.

    A file is a list of objects, some of which name a trace (id, model, request id, parent) and others of which add
    moments to it; the traces of an ensemble's models have the ensemble's as their parent.
    """
    owners: dict[int, dict[str, Any]] = {}
    moments: dict[int, dict[str, int]] = {}
    for entry in _entries(folder.iterdir()):
        owners.setdefault(entry["id"], {}).update(entry)
        for moment in entry.get("timestamps", ()):
            moments.setdefault(entry["id"], {})[moment["name"]] = int(moment["ns"])
    found: dict[str, dict[str, dict[str, int]]] = {}
    for number, owner in owners.items():
        if "model_name" not in owner:
            continue
        request = owner.get("request_id") or owners.get(owner.get("parent_id", 0), {}).get("request_id")
        if request:
            found.setdefault(request, {})[owner["model_name"]] = moments.get(number, {})
    return found


def _entries(files: Iterable[Path]) -> Iterator[dict[str, Any]]:
    for file in sorted(files):
        text = file.read_text()
        try:
            yield from json.loads(text)
        except ValueError:
            # The server was still writing: the list is not closed.
            yield from json.loads(text.rstrip().rstrip(",") + "]")
