from exchange import TEXTS, URL, give
from llama_index.embeddings.nvidia import NVIDIAEmbedding

embeddings = NVIDIAEmbedding(base_url=f"{URL}/v1", api_key="none")
give(texts=embeddings.get_text_embedding_batch(TEXTS), queries=[embeddings.get_query_embedding(t) for t in TEXTS])
