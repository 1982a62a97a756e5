from chromadb.utils.embedding_functions import HuggingFaceEmbeddingServer, OpenAIEmbeddingFunction
from exchange import TEXTS, URL, give

give(
    openai=OpenAIEmbeddingFunction(api_base=f"{URL}/v1", api_key="none", model_name="embedding")(TEXTS),
    tei=HuggingFaceEmbeddingServer(url=f"{URL}/embed")(TEXTS),
)
