"""Every system that can be compared, by name."""

from tritonembed_perf.compare.arctic_peer import ArcticInference
from tritonembed_perf.compare.infinity import Infinity
from tritonembed_perf.compare.ours import Direct, ThroughManager
from tritonembed_perf.compare.peer import Peer
from tritonembed_perf.compare.sentence_transformers import SentenceTransformersInProcess, SentenceTransformersServer
from tritonembed_perf.compare.tei import TextEmbeddingsInference
from tritonembed_perf.compare.vllm_serve import VllmServe
from tritonembed_perf.failures import UsageError

ENVIRONMENTS = ("sentence-transformers", "vllm-serve", "infinity-emb", "arctic-inference")
"""What --python can name. sentence-transformers-http and vllm-serve-tuned share one with their namesakes."""


def all_peers() -> dict[str, Peer]:
    """In the order in which they run."""
    peers: list[Peer] = [
        Direct(),
        ThroughManager("tritonembed-manager", "kserve"),
        ThroughManager("tritonembed-openai", "openai"),
        SentenceTransformersInProcess(),
        SentenceTransformersServer(),
        VllmServe("vllm-serve", "float", tuned=False),
        VllmServe("vllm-serve-tuned", "bytes", tuned=True),
        Infinity(),
        ArcticInference(),
        TextEmbeddingsInference(),
    ]
    return {peer.name: peer for peer in peers}


def choose_peers(names: str) -> list[Peer]:
    """Of `all`, or of names with commas between them. Raises UsageError."""
    known = all_peers()
    wanted = list(known) if names == "all" else [name.strip() for name in names.split(",")]
    for name in wanted:
        if name not in known:
            raise UsageError(f"--peers: {name!r} is none of {', '.join(known)}")
    return [known[name] for name in known if name in wanted]
