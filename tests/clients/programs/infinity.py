from exchange import TEXTS, URL, give
from infinity_client import Client
from infinity_client.api.default import embeddings
from infinity_client.models import OpenAIEmbeddingInputText
from infinity_client.types import UNSET


def ask(base):
    body = OpenAIEmbeddingInputText(input_=TEXTS, model="embedding", dimensions=UNSET)
    return [item.embedding for item in embeddings.sync(client=Client(base_url=base), body=body).data]


give(root=ask(URL), v1=ask(f"{URL}/v1"))
