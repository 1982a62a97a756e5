"""Refuses token ids of another model's tokenizer, which would give wrong vectors without an error.

Some clients of OpenAI's API send ids of OpenAI's own tokenizer, many of which lie within a model's vocabulary. They
lack the special tokens that the model's tokenizer adds to every text, such as BERT's 101 and 102. The model
`tokenizer`, which every server has, shows these tokens if it tokenizes an empty and a short text.
"""

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass

import grpc
from tritonclient.grpc import service_pb2

from tritonembed import ServerError
from tritonembed.request import contents_of
from tritonembed_manager.router.apis.http.errors import BadRequest
from tritonembed_manager.router.interfaces import Dispatcher, DispatchError
from tritonembed_protocol.framing import FramingError, frame, unframe
from tritonembed_protocol.served import FIRST_MODEL, ServedModel

_ID_BYTES = 4
_TEXTS = (b"", b"a")
_REFUSED = (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND)
"""A tokenizer without special tokens may refuse the empty text; an attached server may lack the model."""
_LANGCHAIN = "send text (LangChain: check_embedding_ctx_length=False)"
_FOREIGN = (
    "element {index} lacks the special tokens that this model's tokenizer adds to every text: these ids are perhaps of "
    f"another tokenizer; {_LANGCHAIN}, or the ids of this model's tokenizer with its special tokens"
)
_UNKNOWN = (
    "token ids are not accepted, because this model's tokenizer adds no special tokens by which ids of another "
    f"tokenizer could be recognized; {_LANGCHAIN}, or start the server with --accept-token-ids"
)


@dataclass(frozen=True)
class SpecialTokens:
    """The ids before and after a text's own, as little-endian int32."""

    before: bytes
    after: bytes

    def surround(self, ids: bytes) -> bool:
        """Whether these are the ids of a text with its special tokens."""
        return (
            len(ids) >= len(self.before) + len(self.after) and ids.startswith(self.before) and ids.endswith(self.after)
        )


class ForeignIds:
    """Checks token ids for a model. accept: accept all ids, unchecked (--accept-token-ids)."""

    def __init__(self, dispatcher: Dispatcher, model: ServedModel = FIRST_MODEL, *, accept: bool = False) -> None:
        self._dispatcher = dispatcher
        self._model = model
        self._accept = accept
        self._known: SpecialTokens | None = None
        self._servers: frozenset[tuple[str, str]] | None = None

    async def check(self, messages: Iterable[bytes], field: str) -> None:
        """messages: encoded ModelInferRequests with token ids. field: for errors. Raises BadRequest, DispatchError."""
        if self._accept:
            return
        special = await self._special()
        if special is None:
            raise BadRequest(f"{field}: {_UNKNOWN}", field)
        index = 0
        for message in messages:
            await asyncio.sleep(0)
            [content] = service_pb2.ModelInferRequest.FromString(message).raw_input_contents
            for ids in unframe(content):
                if not special.surround(ids):
                    raise BadRequest(f"{field}: {_FOREIGN.format(index=index)}", field)
                index += 1

    async def _special(self) -> SpecialTokens | None:
        """The tokenizer's special tokens; None if it adds none. Asked for again if the servers have changed."""
        serving = set(self._dispatcher.serving(self._model.name))
        servers = frozenset((view.id, view.space) for view in self._dispatcher.servers() if view.id in serving)
        if servers != self._servers or not servers:
            self._known = await self._ask()
            self._servers = servers
        return self._known

    async def _ask(self) -> SpecialTokens | None:
        asked = service_pb2.ModelInferRequest(
            model_name=self._model.tokenizer, raw_input_contents=[frame(list(_TEXTS))]
        )
        asked.inputs.add(name="text", datatype="BYTES", shape=(len(_TEXTS), 1))
        # Without the model's default prompt.
        asked.parameters["prompt"].string_param = ""
        try:
            answer = await self._dispatcher.call("ModelInfer", asked.SerializeToString(), timeout=None)
        except DispatchError as error:
            if error.code in _REFUSED:
                return None
            raise
        found = contents_of(service_pb2.ModelInferResponse.FromString(answer), ["token_ids"])
        try:
            empty, short = unframe(found["token_ids"])
        except (FramingError, ValueError):
            raise ServerError("output token_ids: it does not have one element per text") from None
        return _special_tokens(empty, short)


def _special_tokens(empty: bytes, short: bytes) -> SpecialTokens | None:
    """The special tokens of a tokenizer with these ids for an empty and for a short text; None if it adds none."""
    ids = range(0, min(len(empty), len(short)), _ID_BYTES)
    split = next((at for at in ids if empty[at : at + _ID_BYTES] != short[at : at + _ID_BYTES]), len(empty))
    found = SpecialTokens(empty[:split], empty[split:])
    return found if empty and len(short) > len(empty) and found.surround(short) else None
