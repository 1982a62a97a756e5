"""What both clients are constructed with, beside the connection."""

from __future__ import annotations

from collections.abc import Iterable

from ._batches import batches, check_batch_size
from ._deadline import Deadline
from ._metadata import Metadata, Pairs, metadata_pairs
from ._options import Options
from ._request import Call
from ._wire import TokenIds, encode_texts, encode_token_ids


class ClientSettings:
    """Names of the models, metadata and the bound of requests in flight; turns inputs into calls."""

    def __init__(self, model: str, tokens_model: str, metadata: Metadata | None, max_in_flight: int) -> None:
        if max_in_flight < 1:
            raise ValueError("max_in_flight is at least 1")
        self.model = model
        self.tokens_model = tokens_model
        self.max_in_flight = max_in_flight
        self._metadata = metadata_pairs(metadata)

    def metadata(self, more: Metadata | None) -> Pairs:
        """The client's metadata, and a call's own after it."""
        return self._metadata + metadata_pairs(more)

    def texts(self, texts: Iterable[str], options: Options, batch_size: int, timeout: float | None) -> Call:
        """A call that embeds texts; its time runs from now on."""
        if isinstance(texts, (str, bytes)):
            # Its letters would be embedded one by one.
            raise TypeError("texts is a single text: put it into a list")
        check_batch_size(batch_size)
        return Call(self.model, "text", batches(texts, encode_texts, batch_size), options, Deadline(timeout))

    def tokens(self, sequences: Iterable[TokenIds], options: Options, batch_size: int, timeout: float | None) -> Call:
        """A call that embeds token ids; its time runs from now on."""
        check_batch_size(batch_size)
        elements = batches(sequences, encode_token_ids, batch_size)
        return Call(self.tokens_model, "token_ids", elements, options, Deadline(timeout))
