from exchange import TEXTS, URL, give
from haystack import Document
from haystack.components.embedders import OpenAIDocumentEmbedder, OpenAITextEmbedder
from haystack.utils import Secret

options = {"api_base_url": f"{URL}/v1", "api_key": Secret.from_token("none"), "model": "embedding"}
documents = OpenAIDocumentEmbedder(**options).run([Document(content=text) for text in TEXTS])["documents"]
text = OpenAITextEmbedder(**options)
give(documents=[document.embedding for document in documents], texts=[text.run(each)["embedding"] for each in TEXTS])
