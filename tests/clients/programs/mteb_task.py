"""mteb's OpenAI model over a tiny task of local data. It counts tokens with OpenAI's tokenizer, which litellm's package
has, so that nothing is downloaded."""

import os
from importlib.util import find_spec
from itertools import combinations
from pathlib import Path

os.environ["TIKTOKEN_CACHE_DIR"] = str(Path(find_spec("litellm").origin).parent / "litellm_core_utils" / "tokenizers")

import mteb
import numpy as np
import openai
from datasets import Dataset
from exchange import TEXTS, URL, give
from mteb.abstasks.sts import AbsTaskSTS
from mteb.abstasks.task_metadata import TaskMetadata
from mteb.models.model_implementations.openai_models import OpenAIModel
from scipy.stats import spearmanr

PAIRS = list(combinations(TEXTS, 2))
SCORES = list(range(len(PAIRS)))


class Local(AbsTaskSTS):
    metadata = TaskMetadata(
        name="Local",
        description="pairs of this test",
        type="STS",
        dataset={"path": "none", "revision": "1"},
        eval_langs=["eng-Latn"],
        eval_splits=["test"],
        main_score="cosine_spearman",
    )

    def load_data(self, **_):
        first, second = zip(*PAIRS, strict=True)
        self.dataset = {"test": Dataset.from_dict({"sentence1": first, "sentence2": second, "score": SCORES})}
        self.data_loaded = True


found = {}


class Kept(OpenAIModel):
    """Keeps the vectors that mteb gets."""

    def encode(self, inputs, **more):
        vectors = super().encode(inputs, **more)
        found.update(zip((text for batch in inputs for text in batch["text"]), vectors, strict=True))
        return vectors


client = openai.OpenAI(base_url=f"{URL}/v1", api_key="none")
model = Kept("embedding", max_tokens=8191, embed_dim=384, client=client)
result = mteb.evaluate(model, Local(), cache=None, show_progress_bar=False)
cosines = [float(found[first] @ found[second]) for first, second in PAIRS]
score = result.task_results[0].get_score()
assert np.isclose(score, spearmanr(SCORES, cosines).statistic), score
give(vectors=[found[text] for text in TEXTS])
