from exchange import TEXTS, URL, give, wait_for
from llama_index.embeddings.text_embeddings_inference import TextEmbeddingsInference

plain = TextEmbeddingsInference(model_name="embedding", base_url=URL)
give(
    texts=plain.get_text_embedding_batch(TEXTS),
    asynchronous=wait_for(plain.aget_text_embedding_batch(TEXTS)),
    queries=[plain.get_query_embedding(text) for text in TEXTS],
)
