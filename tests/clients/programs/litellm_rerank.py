import litellm
from exchange import QUERY, TEXTS, URL, give

BASES = {
    "huggingface/ranker": {"api_base": URL},
    "cohere/ranker": {"api_base": f"{URL}/v1/rerank"},
    "hosted_vllm/ranker": {"api_base": URL},
    # Infinity's documents are plain texts.
    "infinity/ranker": {"api_base": URL, "return_documents": False},
}
found = {}
for model, more in BASES.items():
    response = litellm.rerank(model=model, query=QUERY, documents=TEXTS, top_n=3, api_key="none", **more)
    by_index = {one["index"]: one["relevance_score"] for one in response.results}
    found[model.partition("/")[0]] = [[by_index[number]] for number in range(len(TEXTS))]
give(**found)
