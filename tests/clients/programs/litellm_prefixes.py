import litellm
from exchange import TEXTS, URL, give

PREFIXES = {
    "openai/embedding": {"api_base": f"{URL}/v1"},
    "hosted_vllm/embedding": {"api_base": f"{URL}/v1"},
    "nvidia_nim/embedding": {"api_base": f"{URL}/v1", "input_type": "passage"},
    "infinity/embedding": {"api_base": URL},
    "triton/embedding": {"api_base": f"{URL}/triton/embeddings"},
    "huggingface/embedding": {"api_base": f"{URL}/embed", "input_type": "feature-extraction"},
}
found = {
    prefix.partition("/")[0]: litellm.embedding(model=prefix, input=TEXTS, api_key="none", **more)
    for prefix, more in PREFIXES.items()
}
give(**{name: [item["embedding"] for item in response.data] for name, response in found.items()})
