from exchange import TEXTS, URL, give
from haystack import Document
from haystack_integrations.components.embedders.nvidia import NvidiaDocumentEmbedder, NvidiaTextEmbedder

options = {"api_url": f"{URL}/v1", "api_key": None, "model": "embedding"}
embedders = NvidiaDocumentEmbedder(**options), NvidiaTextEmbedder(**options)
for embedder in embedders:
    embedder.warm_up()
documents = embedders[0].run([Document(content=text) for text in TEXTS])["documents"]
give(
    documents=[document.embedding for document in documents],
    texts=[embedders[1].run(text)["embedding"] for text in TEXTS],
)
