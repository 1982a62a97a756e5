"""From the texts of several requests to token ids: one call of the Rust tokenizer per kind of request."""

from array import array
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tokenizers import Encoding, Tokenizer

from tritonembed_engine.chunks import Chunk, pack, pack_spans, too_many_chunks
from tritonembed_engine.errors import InvalidArgument, ModelError
from tritonembed_engine.model.adapters import NO_ADAPTERS, AdapterFiles, files_of
from tritonembed_engine.model.files import ModelFiles
from tritonembed_engine.parameters import EmbedParameters
from tritonembed_engine.token_ids import BYTES_PER_TOKEN
from tritonembed_engine.tokenizing.chunking import Chunker, ChunkSize, tokens_of
from tritonembed_engine.tokenizing.inspection import Inspector
from tritonembed_engine.tokenizing.loading import expansion_id, load_tokenizer, own_tokenizer
from tritonembed_engine.tokenizing.long_text import SafeCuts
from tritonembed_engine.tokenizing.wordpiece import AsciiWordPiece
from tritonembed_protocol.limits import MAX_REQUEST_CHUNKS

FIRST_PART = 8
"""A long text is first cut to this many characters per token of the maximum; doubled until that is enough."""

LONG = 2 * FIRST_PART
"""A text is long from this many characters per token of the maximum on; shorter texts are tokenized whole."""

Job = tuple[Sequence[bytes], EmbedParameters]
"""A request: its texts, in UTF-8, and its parameters."""


@dataclass
class _Text:
    """A text. request, index: the number of its request, and its number there. limit: the most tokens."""

    request: int
    index: int
    text: str
    limit: int


class TextTokenizer:
    """Tokenizes as the model's own tokenizer, with special tokens and truncation. For one thread at a time."""

    def __init__(self, files: ModelFiles, adapters: Mapping[str, AdapterFiles] = NO_ADAPTERS) -> None:
        """Raises ModelError if the tokenizer can't be loaded. adapters: of the model, which have their own prompts."""
        self._files = files
        self._adapters = adapters
        self._tokenizer = self.tokenizer = load_tokenizer(files)
        self.inspector = Inspector(self._tokenizer, files)
        """Shows tokens; for one thread at a time, as the rest."""
        self._cuts = SafeCuts(self._tokenizer)
        self._ascii = AsciiWordPiece.of(self._tokenizer)
        self._prefix, self._suffix = self.special_tokens = special_tokens_around(self._tokenizer)
        self._around = array("i", self._prefix).tobytes(), array("i", self._suffix).tobytes()
        self._chunker = Chunker(self._tokenizer, len(self._prefix) + len(self._suffix))
        if min(files.lengths.values()) < len(self._prefix) + len(self._suffix):
            raise ModelError(f"{files.name}: its max_seq_length leaves no room for the special tokens of a text")
        self._empty = None if files.empty_id is None else array("i", [files.empty_id]).tobytes()
        multi_vector = files.token_outputs.multi_vector
        self._expansion = multi_vector.expansion if multi_vector else None
        if self._expansion is not None:
            self._fill = array("i", [expansion_id(own_tokenizer(files), self._expansion.token)])
        self.sentences = 0
        """Texts that were tokenized so far."""
        self.truncated = 0
        """Texts that lost tokens to the maximum length."""

    def encode_requests(self, jobs: Sequence[Job]) -> list[list[bytes] | InvalidArgument]:
        """Per request: the ids of its sentences as little-endian int32, or its error. Under `truncate=CHUNK` an element
        holds a text's chunks (see `tritonembed_engine.chunks`).

        The texts of all requests with the same prompt and truncation are tokenized in one call.
        """
        answers: list[list[bytes] | InvalidArgument] = []
        groups: dict[tuple[str, str, int], list[_Text]] = defaultdict(list)
        for request, (texts, parameters) in enumerate(jobs):
            truncate = parameters.truncate or self._files.truncate
            limit = self._files.lengths[parameters.input_type]
            try:
                prompt = files_of(self._files, self._adapters, parameters.adapter).prompt_for(
                    parameters.input_type, parameters.prompt_name, parameters.prompt, parameters.instruction
                )
                decoded = [decode(text, index) for index, text in enumerate(texts)]
                if parameters.spans is not None:
                    answers.append(self._mark_spans(decoded, prompt, limit, parameters.spans))
                    continue
                if truncate == "CHUNK":
                    answers.append(self._chunk(decoded, prompt, limit, parameters))
                    continue
            except InvalidArgument as error:
                answers.append(error)
                continue
            answers.append([b""] * len(decoded))
            group = groups[prompt, truncate, limit]
            for index, text in enumerate(decoded):
                one = _Text(request, index, prompt + text, limit)
                if not self._accept_ascii(one, truncate, answers):
                    group.append(one)
        for (_, truncate, limit), group in groups.items():
            self._encode_group(group, truncate, limit, answers)
        if self._expansion is not None:
            self._expand(jobs, answers)
        self.sentences += sum(len(answer) for answer in answers if isinstance(answer, list))
        return answers

    def encode_bare(
        self, texts: Sequence[str], at_most: int | None, truncate: str, name: str = "text"
    ) -> list[list[int]]:
        """Ids of texts without special tokens. Raises InvalidArgument, which calls the texts by `name`.

        at_most: of a text with more ids than these, the first ones (for START the last) and at least one more are
        enough. None: all are needed.
        """
        self._tokenizer.no_truncation()
        most = None if at_most is None else max(at_most, 1)
        found = {index: ids for index, text in enumerate(texts) if (ids := self._bare_ascii(text, most, truncate))}
        rest = [index for index in range(len(texts)) if index not in found]
        short = [index for index in rest if most is None or len(texts[index]) <= LONG * most]
        try:
            encodings = self._tokenizer.encode_batch_fast([texts[index] for index in short], add_special_tokens=False)
            found |= {index: encoding.ids for index, encoding in zip(short, encodings, strict=True)}
        except Exception:
            # Some tokenizers refuse a text: find that text.
            short = []
        for index in set(rest).difference(short):
            found[index] = self._bare_alone(texts[index], index, most, truncate, name)
        return [found[index] for index in range(len(texts))]

    def _bare_ascii(self, text: str, at_most: int | None, truncate: str) -> list[int] | None:
        if self._ascii is None or not text.isascii() or truncate == "START":
            return None
        ids = self._ascii.encode(text, None if at_most is None else at_most + 1)
        return None if ids is None else array("i", ids).tolist()

    def _bare_alone(self, text: str, index: int, at_most: int | None, truncate: str, name: str) -> list[int]:
        cut = self._cuts.suffix if truncate == "START" else self._cuts.prefix
        characters = len(text) if at_most is None else FIRST_PART * at_most
        while True:
            part = cut(text, characters)
            try:
                ids: list[int] = self._tokenizer.encode_batch_fast([part], add_special_tokens=False)[0].ids
            except Exception:
                raise _refused(index, name) from None
            if len(part) == len(text) or (at_most is not None and len(ids) > at_most):
                return ids
            characters = 2 * max(characters, len(part))

    def _expand(self, jobs: Sequence[Job], answers: list[list[bytes] | InvalidArgument]) -> None:
        """Fill the queries up to the length of the expansion."""
        assert self._expansion is not None
        for (_, parameters), answer in zip(jobs, answers, strict=True):
            if parameters.input_type == "query" and isinstance(answer, list):
                lacking = [max(0, self._expansion.length - len(ids) // self._fill.itemsize) for ids in answer]
                answer[:] = [ids + (self._fill * n).tobytes() for ids, n in zip(answer, lacking, strict=True)]

    def _chunk(self, texts: list[str], prompt: str, limit: int, parameters: EmbedParameters) -> list[bytes]:
        """The elements of a request whose long texts become chunks. Raises InvalidArgument."""
        tokens = parameters.chunk_tokens or limit
        if tokens > limit:
            raise InvalidArgument("chunk_tokens", f"{tokens} is over the model's maximum of {limit}")
        size = ChunkSize(tokens, parameters.chunk_overlap)
        self._tokenizer.no_truncation()
        elements, count = [], 0
        for index, text in enumerate(texts):
            chunks = self._chunks_of(text, index, prompt, size)
            count += len(chunks)
            if count > MAX_REQUEST_CHUNKS:
                raise too_many_chunks("text")
            elements.append(pack(chunks))
        return elements

    def _chunks_of(self, text: str, index: int, prompt: str, size: ChunkSize) -> list[Chunk]:
        try:
            chunks = self._chunker.chunks(text, prompt, size, index)
        except InvalidArgument:
            raise
        except Exception:
            raise _refused(index) from None
        if self._empty is not None:
            return [Chunk(chunk.ids or self._empty, chunk.start, chunk.end) for chunk in chunks]
        if not all(chunk.ids for chunk in chunks):
            raise _no_tokens(index)
        return chunks

    def _mark_spans(
        self, texts: list[str], prompt: str, limit: int, spans: Sequence[Sequence[tuple[int, int]]]
    ) -> list[bytes]:
        """The elements of a request whose texts have spans. Raises InvalidArgument."""
        if len(spans) != len(texts):
            raise InvalidArgument("spans", f"there are those of {len(spans)} texts, but the request has {len(texts)}")
        elements = []
        for index, (text, of_text) in enumerate(zip(texts, spans, strict=True)):
            self._set_truncation("NONE", limit)
            try:
                # A part of a text of megabytes shows that it is too long.
                encoding, is_cut = self._encode_long(prompt + text, "NONE", limit)
                if not is_cut:
                    encoding = self._tokenizer.encode(prompt + text)
            except Exception:
                raise _refused(index) from None
            if len(encoding) > limit:
                raise _too_long(index, None if is_cut else len(encoding), limit)
            elements.append(pack_spans(encoding.ids, tokens_of(encoding.offsets, of_text, text, len(prompt), index)))
        return elements

    def _accept_ascii(self, text: _Text, truncate: str, answers: list[list[bytes] | InvalidArgument]) -> bool:
        """Tokenize by `AsciiWordPiece`. False if it does not serve the text."""
        answer = answers[text.request]
        if isinstance(answer, InvalidArgument):
            return True
        if self._ascii is None or not text.text.isascii():
            return False
        before, after = self._around
        room = text.limit * BYTES_PER_TOKEN - len(before) - len(after)
        ids = self._encode_ascii(self._ascii, text, truncate, room // BYTES_PER_TOKEN)
        if ids is None:
            return False
        if not (ids or before or after):
            self._accept_empty(text, answers)
            return True
        if len(ids) > room:
            if truncate == "NONE":
                answers[text.request] = _too_long(text.index, None, text.limit)
                return True
            self.truncated += 1
            ids = ids[:room] if truncate == "END" else ids[len(ids) - room :]
        answer[text.index] = before + ids + after
        return True

    def _encode_ascii(self, ascii_ids: AsciiWordPiece, text: _Text, truncate: str, room: int) -> bytes | None:
        """Ids of the text, int32, or of a part of it that is more than there is room for. room: tokens."""
        if truncate != "START":
            return ascii_ids.encode(text.text, room + 1)
        characters = FIRST_PART * text.limit
        while True:
            part = self._cuts.suffix(text.text, characters)
            ids = ascii_ids.encode(part, None)
            if ids is None or len(ids) > room * BYTES_PER_TOKEN or len(part) == len(text.text):
                return ids
            characters = 2 * max(characters, len(part))

    def _encode_group(
        self, group: list[_Text], truncate: str, limit: int, answers: list[list[bytes] | InvalidArgument]
    ) -> None:
        """Put the ids, or the first error, of every text of the group into its request's answer."""
        self._set_truncation(truncate, limit)
        longest = LONG * limit
        short = [text for text in group if len(text.text) <= longest]
        try:
            encodings = self._tokenizer.encode_batch_fast([text.text for text in short])
            alone = [text for text in group if len(text.text) > longest]
        except Exception:
            # Some tokenizers refuse a text (a character outside a Unigram vocabulary without <unk>): find that text.
            short, encodings, alone = [], [], group
        for text, encoding in zip(short, encodings, strict=True):
            self._accept(text, encoding, truncate, False, answers)
        for text in alone:
            self._encode_alone(text, truncate, answers)

    def _encode_alone(self, text: _Text, truncate: str, answers: list[list[bytes] | InvalidArgument]) -> None:
        if isinstance(answers[text.request], InvalidArgument):
            return
        try:
            encoding, is_cut = self._encode_long(text.text, truncate, text.limit)
        except Exception:
            answers[text.request] = _refused(text.index)
        else:
            self._accept(text, encoding, truncate, is_cut, answers)

    def _set_truncation(self, truncate: str, limit: int) -> None:
        if truncate == "NONE":
            self._tokenizer.no_truncation()
        else:
            direction = "left" if truncate == "START" else "right"
            self._tokenizer.enable_truncation(limit, direction=direction)

    def _encode_long(self, text: str, truncate: str, limit: int) -> tuple[Encoding, bool]:
        """The encoding of a long enough part of the text, and whether it is less than the whole."""
        cut = self._cuts.suffix if truncate == "START" else self._cuts.prefix
        # Under NONE, a token over the maximum is an error; otherwise the part has to fill the maximum.
        enough = limit + (truncate == "NONE")
        characters = FIRST_PART * limit
        while True:
            part = cut(text, characters)
            is_cut = len(part) < len(text)
            encoding = self._tokenizer.encode_batch_fast([part])[0]
            if not is_cut or len(encoding) >= enough:
                return encoding, is_cut
            characters = 2 * max(characters, len(part))

    def _accept(
        self,
        text: _Text,
        encoding: Encoding,
        truncate: str,
        is_cut: bool,
        answers: list[list[bytes] | InvalidArgument],
    ) -> None:
        answer = answers[text.request]
        if isinstance(answer, InvalidArgument):
            return
        # array is the fastest way from ints to bytes. Every machine that Triton runs on is little-endian.
        ids = array("i", encoding.ids)
        maximum = text.limit
        if len(ids) > maximum:
            answers[text.request] = _too_long(text.index, None if is_cut else len(ids), maximum)
        elif not ids:
            self._accept_empty(text, answers)
        else:
            answer[text.index] = ids.tobytes()
            if len(ids) == maximum and truncate != "NONE":
                self.truncated += is_cut or bool(encoding.overflowing)

    def _accept_empty(self, text: _Text, answers: list[list[bytes] | InvalidArgument]) -> None:
        """The model's id for a text without tokens, or an error."""
        answer = answers[text.request]
        if self._empty is None:
            answers[text.request] = _no_tokens(text.index)
        elif not isinstance(answer, InvalidArgument):
            answer[text.index] = self._empty


def special_tokens_around(tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """The special tokens before and after a text's own ids."""
    encoding = tokenizer.encode("a")
    own = [index for index, special in enumerate(encoding.special_tokens_mask) if not special]
    return (encoding.ids[: own[0]], encoding.ids[own[-1] + 1 :]) if own else (encoding.ids, [])


def _too_long(index: int, count: int | None, maximum: int) -> InvalidArgument:
    """count: the tokens of the whole text, if they were counted."""
    has = f"more tokens than the model's maximum of {maximum}"
    if count is not None:
        has = f"{count} tokens, over the model's maximum of {maximum}"
    return InvalidArgument("text", f"sentence {index} has {has}")


def _refused(index: int, name: str = "text") -> InvalidArgument:
    return InvalidArgument(name, f"sentence {index} holds something that the model's tokenizer refuses")


def _no_tokens(index: int) -> InvalidArgument:
    return InvalidArgument("text", f"sentence {index} has no tokens")


def decode(text: bytes, index: int, name: str = "text") -> str:
    """Raises InvalidArgument if it is not UTF-8. index: of the text in its request. name: of its tensor."""
    try:
        return text.decode("utf-8")
    except UnicodeDecodeError as error:
        problem = f"sentence {index} is not valid UTF-8 (at byte {error.start})"
        raise InvalidArgument(name, problem) from None
