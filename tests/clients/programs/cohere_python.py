import base64
import struct

import cohere
from exchange import TEXTS, URL, give, wait_for

kinds = ["float", "int8", "ubinary", "base64"]
new = cohere.ClientV2(api_key="none", base_url=URL)
typed = new.embed(model="embedding", input_type="clustering", texts=TEXTS, embedding_types=kinds).embeddings
assert len(typed.ubinary[0]) * 8 == len(typed.int8[0]) == len(typed.float_[0])
inputs = [{"content": [{"type": "text", "text": text}]} for text in TEXTS]
objects = new.embed(model="embedding", input_type="clustering", inputs=inputs, embedding_types=["float"])
old = cohere.Client(api_key="none", base_url=URL)
floats = old.embed(texts=TEXTS)
assert floats.texts == TEXTS


async def asynchronous():
    client = cohere.AsyncClientV2(api_key="none", base_url=URL)
    return await client.embed(model="embedding", input_type="clustering", texts=TEXTS, embedding_types=["float"])


refusal = ""
try:
    new.embed(model="embedding", input_type="clustering", texts=["word " * 1000], truncate="NONE")
except cohere.BadRequestError as error:
    refusal = error.body["message"]
assert "maximum" in refusal, refusal
give(
    v2=typed.float_,
    base64=[struct.unpack(f"<{len(typed.float_[0])}f", base64.b64decode(text)) for text in typed.base64],
    inputs=objects.embeddings.float_,
    v1=floats.embeddings,
    asynchronous=wait_for(asynchronous()).embeddings.float_,
)
