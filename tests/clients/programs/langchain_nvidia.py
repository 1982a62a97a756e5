from exchange import TEXTS, URL, give
from langchain_nvidia_ai_endpoints import NVIDIAEmbeddings

embeddings = NVIDIAEmbeddings(base_url=f"{URL}/v1")
give(documents=embeddings.embed_documents(TEXTS), queries=[embeddings.embed_query(text) for text in TEXTS])
