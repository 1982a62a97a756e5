"""The tokens of a text, and the text of token ids, as JSON, for people and for text-embeddings-inference's routes.

Nothing is truncated here: a client asks how long a text is before it sends it for a vector.
"""

import json
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tritonembed_engine.errors import InvalidArgument

# The manager imports this, for the names of the outputs.
if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer

    from tritonembed_engine.model.files import ModelFiles

TOKENS, DECODED = "tokens", "decoded"
"""Outputs of the model `tokenizer`. A request asks for one of them, and for nothing else."""
_BOOLS = ("add_special_tokens", "skip_special_tokens")

MAX_BYTES = 1024 * 1024
"""Limit for the texts of a request: each token becomes a line of JSON."""
_ID_BYTES = 4


@dataclass(frozen=True)
class InspectParameters:
    """add_special_tokens: of `tokens`. skip_special_tokens: of `decoded`. prompt_name: None for the default."""

    add_special_tokens: bool = True
    skip_special_tokens: bool = True
    prompt_name: str | None = None


def parse_inspect_parameters(raw: str) -> InspectParameters:
    """raw: as for parse_parameters. Raises InvalidArgument, which names the parameter."""
    given = {name: value for name, value in json.loads(raw or "{}").items() if not name.startswith("triton_")}
    for name, value in given.items():
        if name not in InspectParameters.__dataclass_fields__:
            known = ", ".join(InspectParameters.__dataclass_fields__)
            raise InvalidArgument("parameters", f"there is an unknown one; known are {known}")
        if name in _BOOLS and not isinstance(value, bool):
            raise InvalidArgument(name, "must be a bool")
        if name not in _BOOLS and not isinstance(value, str):
            raise InvalidArgument(name, "must be a string")
    return InspectParameters(**given)


class Inspector:
    """tokenizer: of the model; it must be free while a method runs."""

    def __init__(self, tokenizer: "Tokenizer", files: "ModelFiles") -> None:
        self._tokenizer = tokenizer
        self._files = files
        self._size = tokenizer.get_vocab_size(with_added_tokens=True)

    def tokens(self, texts: Sequence[bytes], parameters: InspectParameters) -> list[bytes]:
        """Per text a JSON list with an object per token: id, text, special, start and stop.

        start and stop: characters of the prompt and the text; null for a special token. Raises InvalidArgument.
        """
        if sum(map(len, texts)) > MAX_BYTES:
            raise InvalidArgument("text", f"the texts have more than {MAX_BYTES} bytes, which is the limit for tokens")
        prompt = self._files.prompt_for(None, parameters.prompt_name)
        self._tokenizer.no_truncation()
        found = []
        for index, text in enumerate(texts):
            try:
                whole = prompt + text.decode()
                encoding = self._tokenizer.encode(whole, add_special_tokens=parameters.add_special_tokens)
            except Exception:
                problem = f"sentence {index} is not UTF-8, or holds something that the model's tokenizer refuses"
                raise InvalidArgument("text", problem) from None
            found.append(json.dumps(_described(encoding, whole), ensure_ascii=False).encode())
        return found

    def decoded(self, elements: Sequence[bytes], parameters: InspectParameters) -> list[bytes]:
        """Per element, ids as little-endian int32, the text in UTF-8. Raises InvalidArgument."""
        texts = []
        for index, element in enumerate(elements):
            if len(element) % _ID_BYTES:
                raise InvalidArgument("text", f"element {index} is not a list of ids of four bytes")
            ids = array("i", element)
            if not all(0 <= id < self._size for id in ids):
                raise InvalidArgument(
                    "text", f"element {index} has an id outside the vocabulary of 0 to {self._size - 1}"
                )
            texts.append(self._tokenizer.decode(list(ids), skip_special_tokens=parameters.skip_special_tokens).encode())
        return texts


def _described(encoding: "Encoding", text: str) -> list[dict[str, Any]]:
    rows = zip(encoding.ids, encoding.tokens, encoding.special_tokens_mask, encoding.offsets, strict=True)
    return [
        {"id": id, "text": token, "special": True, "start": None, "stop": None}
        if special
        else {"id": id, "text": text[start:stop], "special": False, "start": start, "stop": stop}
        for id, token, special, (start, stop) in rows
    ]
