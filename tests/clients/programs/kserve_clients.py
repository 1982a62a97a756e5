import numpy as np
from exchange import GRPC, TEXTS, URL, give, wait_for
from kserve import InferenceGRPCClient, InferenceRESTClient, InferInput, InferRequest, RESTConfig


def request(**parameters):
    tensor = InferInput("text", [len(TEXTS), 1], "BYTES", data=TEXTS)
    return InferRequest(model_name="embedding", infer_inputs=[tensor], parameters=parameters)


async def rest():
    client = InferenceRESTClient(RESTConfig(protocol="v2"))
    answer = await client.infer(URL, request(**{"as": "FP32"}), model_name="embedding")
    return next(output for output in answer.outputs if output.name == "embedding").as_numpy()


async def grpc():
    tensor = InferInput("text", [len(TEXTS), 1], "BYTES")
    tensor.set_data_from_numpy(np.array([[text.encode()] for text in TEXTS], dtype=np.object_), binary_data=True)
    client = InferenceGRPCClient(GRPC)
    answer = await client.infer(InferRequest(model_name="embedding", infer_inputs=[tensor]))
    output = next(output for output in answer.outputs if output.name == "embedding")
    return [np.frombuffer(row, "<f4") for row in output.as_numpy().reshape(-1)]


give(rest=wait_for(rest()), grpc=wait_for(grpc()))
