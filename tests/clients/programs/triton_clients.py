import numpy as np
import tritonclient.grpc
import tritonclient.grpc.aio
import tritonclient.http
import tritonclient.http.aio
from exchange import GRPC, HTTP, TEXTS, give, wait_for


def tensor(module):
    found = module.InferInput("text", [len(TEXTS), 1], "BYTES")
    found.set_data_from_numpy(np.array([[text.encode()] for text in TEXTS], dtype=np.object_))
    return found


def vectors(answer):
    return [np.frombuffer(row, "<f4") for row in answer.as_numpy("embedding").reshape(-1)]


async def asynchronous(module, address):
    async with module.InferenceServerClient(address) as client:
        base = tritonclient.grpc if module is tritonclient.grpc.aio else tritonclient.http
        return vectors(await client.infer("embedding", [tensor(base)]))


http = tritonclient.http.InferenceServerClient(HTTP)
numbers = http.infer(
    "embedding",
    [tensor(tritonclient.http)],
    outputs=[tritonclient.http.InferRequestedOutput("embedding_fp32", binary_data=False)],
)
give(
    grpc=vectors(tritonclient.grpc.InferenceServerClient(GRPC).infer("embedding", [tensor(tritonclient.grpc)])),
    http=vectors(http.infer("embedding", [tensor(tritonclient.http)])),
    grpc_aio=wait_for(asynchronous(tritonclient.grpc.aio, GRPC)),
    http_aio=wait_for(asynchronous(tritonclient.http.aio, HTTP)),
    numbers=numbers.as_numpy("embedding_fp32"),
)
