from exchange import TEXTS, URL, give
from llama_index.embeddings.openai_like import OpenAILikeEmbedding

embeddings = OpenAILikeEmbedding(model_name="embedding", api_base=f"{URL}/v1", api_key="none")
give(texts=embeddings.get_text_embedding_batch(TEXTS), queries=[embeddings.get_query_embedding(t) for t in TEXTS])
