"""`serve --model` of a family that vLLM lacks: MPNet through real servers gives sentence-transformers' vectors."""

from pathlib import Path

from sentence_transformers import SentenceTransformer
from tests.integration.reference import cosines
from tests.integration.serve import serving

from tritonembed import EmbeddingClient
from tritonembed_perf.families.registry import load_cases

TEXTS = ["", "one", "a longer text, with <pad> in it", "naïve 😀 中文", *("word " * n for n in range(2, 90, 3))]


def test_serve_starts_mpnet_and_gives_sentence_transformers_vectors(tmp_path: Path) -> None:
    folder = tmp_path / "mpnet"
    load_cases()["mpnet"].write(folder)
    theirs = SentenceTransformer(str(folder), device="cpu")
    theirs.max_seq_length = 48
    expected = theirs.encode(TEXTS, batch_size=1, show_progress_bar=False)
    arguments = ["--model", folder, "--device=cpu", "--tokenizer-instances=1", "--workers=1", "--max-model-len=48"]
    with serving(*arguments) as manager, EmbeddingClient(manager.target) as client:
        log = manager.log()
        vectors, num_tokens = client.embed(TEXTS)
    assert num_tokens.max() == 48
    assert cosines(vectors, expected).min() > 0.99999
    assert "transformers executor: lowest cosine" in log, log
