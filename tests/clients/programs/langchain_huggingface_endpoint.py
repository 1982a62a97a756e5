from exchange import TEXTS, URL, give, wait_for
from huggingface_hub import AsyncInferenceClient, InferenceClient
from langchain_huggingface import HuggingFaceEndpointEmbeddings

embeddings = HuggingFaceEndpointEmbeddings()
# The class refuses addresses as `model`.
embeddings.client, embeddings.async_client = InferenceClient(URL), AsyncInferenceClient(URL)
give(
    documents=embeddings.embed_documents(TEXTS),
    queries=[embeddings.embed_query(text) for text in TEXTS],
    asynchronous=wait_for(embeddings.aembed_documents(TEXTS)),
)
