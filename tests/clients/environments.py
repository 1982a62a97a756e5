"""The clients of `make test-clients`: by environment, what is installed and which programs run in it.

Each environment is a virtual environment of its own under .work, because clients want versions that exclude each other.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Environment:
    """packages: pinned. programs: files in `programs`."""

    packages: tuple[str, ...]
    programs: tuple[str, ...]


PYTHON = {
    "openai": Environment(("openai==3.57.0",), ("openai_python",)),
    "langchain": Environment(
        (
            "langchain-openai==1.7.4",
            "langchain-nvidia-ai-endpoints==1.5.0",
            "langchain-huggingface==1.2.3",
            # For huggingface_hub.
            "numpy==2.4.6",
        ),
        ("langchain_openai_embeddings", "langchain_nvidia", "langchain_huggingface_endpoint"),
    ),
    "llama_index": Environment(
        (
            "llama-index-embeddings-openai-like==0.4.0",
            "llama-index-embeddings-nvidia==0.6.0",
            "llama-index-embeddings-text-embeddings-inference==0.6.0",
        ),
        ("llama_index_openai_like", "llama_index_nvidia", "llama_index_tei"),
    ),
    "haystack": Environment(("haystack-ai==3.4.1", "nvidia-haystack==3.0.0"), ("haystack_openai", "haystack_nvidia")),
    "litellm": Environment(("litellm==1.110.2",), ("litellm_prefixes", "litellm_rerank")),
    "mteb": Environment(
        (
            "mteb==2.26.24",
            "openai==3.57.0",
            # For OpenAI's tokenizer, which its package has.
            "litellm==1.110.2",
            "tiktoken==0.14.0",
            "torch==2.13.0",
        ),
        ("mteb_task",),
    ),
    "vector_stores": Environment(("chromadb==1.5.9", "qdrant-client==1.20.0", "openai==3.57.0"), ("chroma", "qdrant")),
    "cohere": Environment(("cohere==7.3.1",), ("cohere_python", "rerank_cohere")),
    "rerank": Environment(
        (
            "langchain-cohere==0.6.0",
            "llama-index-postprocessor-jinaai-rerank==0.6.0",
            "llama-index-postprocessor-tei-rerank==0.6.0",
        ),
        ("rerank_frameworks",),
    ),
    "hugging_face": Environment(("huggingface_hub==2.4.0", "numpy==2.4.6"), ("hugging_face",)),
    "infinity": Environment(("infinity_client==0.0.78",), ("infinity",)),
    "kserve": Environment(("tritonclient[all]==2.73.0", "kserve==0.21.0"), ("triton_clients", "kserve_clients")),
}
LOAD_GENERATORS = {
    "aiperf": Environment(("aiperf==0.13.0",), ("aiperf",)),
    "genai_perf": Environment(("genai-perf==0.0.16",), ("genai-perf",)),
}
"""By environment; their programs are commands."""
RERANKERS = ("rerank_cohere", "rerank_frameworks", "litellm_rerank")
"""Programs that give the scores of the texts for a query instead of vectors."""
NODE = ("openai_node", "grpc_js")
"""Programs that run in Node with the packages of package.json."""
