import openai
from exchange import TEXTS, URL, give, wait_for
from langchain_openai import OpenAIEmbeddings

options = {"base_url": f"{URL}/v1", "api_key": "none", "model": "embedding"}
embeddings = OpenAIEmbeddings(**options, check_embedding_ctx_length=False)
client = openai.OpenAI(base_url=f"{URL}/v1", api_key="none")
try:
    # The class sends this by default: the ids of `hello world` in OpenAI's tokenizer, which it downloads.
    client.embeddings.create(model="embedding", input=[[15339, 1917]])
    refusal = "none"
except openai.BadRequestError as error:
    refusal = str(error)
assert "check_embedding_ctx_length=False" in refusal, refusal
give(
    documents=embeddings.embed_documents(TEXTS),
    queries=[embeddings.embed_query(text) for text in TEXTS],
    asynchronous=wait_for(embeddings.aembed_documents(TEXTS)),
)
