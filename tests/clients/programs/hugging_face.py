from exchange import TEXTS, URL, give, wait_for
from huggingface_hub import AsyncInferenceClient, InferenceClient

client = InferenceClient(URL)
found = client.feature_extraction(TEXTS)
scores = client.sentence_similarity(TEXTS[0], other_sentences=TEXTS)
assert max(abs(scores - found @ found[0])) < 1e-5
give(
    texts=found,
    one_by_one=[client.feature_extraction(text)[0] for text in TEXTS],
    embed=InferenceClient(f"{URL}/embed").feature_extraction(TEXTS, normalize=True, truncate=True),
    asynchronous=wait_for(AsyncInferenceClient(URL).feature_extraction(TEXTS)),
)
