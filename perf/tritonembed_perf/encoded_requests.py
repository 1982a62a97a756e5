"""The requests of a load, serialized before the clock starts."""

from tokenizers import Tokenizer

from tritonembed_perf.exact_length import exact_length_texts
from tritonembed_perf.load import encode_request
from tritonembed_perf.shape_load import ShapeLoad

TEXTS = 1024


def encoded_requests(tokenizer: Tokenizer, load: ShapeLoad, texts: int = TEXTS) -> list[bytes]:
    """Requests of the load's shape that hold about so many different texts in all; at least one."""
    made = exact_length_texts(tokenizer, load.tokens, max(texts, load.sentences), seed=load.tokens)
    starts = range(0, len(made) - load.sentences + 1, load.sentences)
    return [encode_request(made[start : start + load.sentences]) for start in starts]
