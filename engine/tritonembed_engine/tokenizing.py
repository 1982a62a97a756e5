"""Texts to token ids: exactly the ids of the model's own tokenizer, special tokens and truncation included."""

from array import array
from collections import defaultdict
from collections.abc import Sequence

from tokenizers import Tokenizer

from tritonembed_engine.errors import InvalidArgument
from tritonembed_engine.model_files import ModelFiles
from tritonembed_engine.parameters import EmbedParameters
from tritonembed_engine.wordpiece import AsciiWordPiece

Request = tuple[Sequence[bytes], EmbedParameters]
_DIRECTIONS = {"END": "right", "START": "left"}


class TextTokenizer:
    """One model's tokenizer; for one thread.

    sentences, truncated: how many it has seen, and how many of those it cut to the model's maximum.
    """

    def __init__(self, files: ModelFiles) -> None:
        self._files = files
        self._tokenizer = load_tokenizer(files)
        self._prefix, self._suffix = _special_tokens(self._tokenizer)
        self._room = files.max_length - len(self._prefix) - len(self._suffix)
        self._ascii = AsciiWordPiece.of(self._tokenizer)
        self.sentences = 0
        self.truncated = 0

    def encode_requests(self, requests: Sequence[Request]) -> list[list[bytes] | InvalidArgument]:
        """Each request's sentences as ids, little-endian int32; a request that is wrong gets its own error.

        A request is its sentences in UTF-8 and its parameters, of which `truncate` and `input_type` matter here.
        """
        answers: list[list[bytes] | InvalidArgument] = []
        # What the short way leaves, by how it is truncated: text, and the place of its ids.
        left: dict[str, list[tuple[str, int, int]]] = defaultdict(list)
        for number, (sentences, parameters) in enumerate(requests):
            try:
                answers.append(self._encode_short(sentences, parameters, number, left[parameters.truncate]))
            except InvalidArgument as error:
                answers.append(error)
        for truncate, texts in left.items():
            self._encode_left(truncate, [text for text in texts if isinstance(answers[text[1]], list)], answers)
        self.sentences += sum(len(answer) for answer in answers if isinstance(answer, list))
        return answers

    def _encode_short(
        self, sentences: Sequence[bytes], parameters: EmbedParameters, number: int, left: list[tuple[str, int, int]]
    ) -> list[bytes]:
        prompt = self._files.prompt_for(parameters.input_type)
        answer: list[bytes] = []
        for index, sentence in enumerate(sentences):
            ids = None
            if self._ascii is not None and sentence.isascii() and prompt.isascii():
                # One more than there is room for, so that what is too long shows.
                at_most = self._room + 1 if parameters.truncate != "START" else None
                ids = self._ascii.encode(prompt + self._text(sentence, index), at_most)
            if ids is None:
                left.append((prompt + self._text(sentence, index), number, index))
                answer.append(b"")
            else:
                answer.append(self._framed(ids, parameters.truncate, index))
        return answer

    def _text(self, sentence: bytes, index: int) -> str:
        try:
            text = sentence.decode("utf-8")
        except UnicodeDecodeError:
            raise InvalidArgument("text", f"sentence {index} is not valid UTF-8") from None
        return text.lower() if self._files.lowercase else text

    def _framed(self, ids: list[int], truncate: str, index: int) -> bytes:
        """Cut to the room there is, special tokens around."""
        if len(ids) > self._room:
            if truncate == "NONE":
                raise _too_long(index, self._files.max_length)
            self.truncated += 1
            ids = ids[: self._room] if truncate == "END" else ids[len(ids) - self._room :]
        return array("i", [*self._prefix, *ids, *self._suffix]).tobytes()

    def _encode_left(
        self, truncate: str, texts: list[tuple[str, int, int]], answers: list[list[bytes] | InvalidArgument]
    ) -> None:
        if not texts:
            return
        maximum = self._files.max_length
        if truncate == "NONE":
            self._tokenizer.no_truncation()
        else:
            self._tokenizer.enable_truncation(maximum, direction=_DIRECTIONS[truncate])
        encodings = self._tokenizer.encode_batch_fast([text for text, _, _ in texts])
        for (_, number, index), encoding in zip(texts, encodings, strict=True):
            answer = answers[number]
            if isinstance(answer, InvalidArgument):
                continue
            ids = encoding.ids
            if len(ids) > maximum:
                answers[number] = _too_long(index, maximum)
                continue
            if len(ids) == maximum and encoding.overflowing:
                self.truncated += 1
            answer[index] = array("i", ids).tobytes()


def load_tokenizer(files: ModelFiles) -> Tokenizer:
    """The model's tokenizer as transformers reads it (some models' files only make sense through it)."""
    from transformers import AutoTokenizer

    tokenizer: Tokenizer = AutoTokenizer.from_pretrained(files.folder)._tokenizer
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def _special_tokens(tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """What stands before and after a single text's own ids."""
    encoding = tokenizer.encode("a")
    own = [place for place, special in enumerate(encoding.special_tokens_mask) if not special]
    if not own:
        return encoding.ids, []
    return encoding.ids[: own[0]], encoding.ids[own[-1] + 1 :]


def _too_long(index: int, maximum: int) -> InvalidArgument:
    return InvalidArgument("text", f"sentence {index} has more tokens than the model's maximum of {maximum}")
