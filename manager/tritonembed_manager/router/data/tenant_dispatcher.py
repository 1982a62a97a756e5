"""The dispatcher of a manager with tenants: it checks each request's tenant, model and quotas, and counts its tokens.

Here, too, a request without a key is refused. If a caller does not ask for `num_tokens`, the dispatcher does, and
removes it from the answer.
"""

from collections.abc import Collection, Iterator
from contextlib import contextmanager

import grpc

from tritonembed_manager.router.data.envelope import work_of
from tritonembed_manager.router.data.model_names import ServedNames
from tritonembed_manager.router.data.protobuf import BYTES, Fields, field
from tritonembed_manager.router.data.quotas import Charge, Quotas, estimate
from tritonembed_manager.router.data.tenants import (
    NO_KEY,
    Tenant,
    check_model,
    current_limits,
    current_tenant,
    is_admitted,
    use_model,
)
from tritonembed_manager.router.interfaces import Admission, Caller, Dispatcher, DispatchError, Metadata
from tritonembed_protocol.status import STATUSES

_CODE = grpc.StatusCode
PERHAPS_COMPUTED = (_CODE.CANCELLED, _CODE.DEADLINE_EXCEEDED)
"""Statuses that a client can cause while servers compute its request: such requests are charged with the estimate."""
_CLIENTS_FAULT = 500
"""HTTP statuses below this, except overload (429), are the client's fault."""


class TenantDispatcher:
    """A Dispatcher over another one; interfaces.py describes its methods."""

    def __init__(self, dispatcher: Dispatcher, quotas: Quotas, names: ServedNames | None = None) -> None:
        """names: of the models."""
        self._names = names or ServedNames()
        self._dispatcher = dispatcher
        self._quotas = quotas
        self.servers = dispatcher.servers
        self.serving = dispatcher.serving
        self.refused = dispatcher.refused

    async def infer(
        self,
        request: bytes,
        *,
        timeout: float | None,
        metadata: Metadata,
        caller: Caller,
        admitted: Admission | None = None,
    ) -> bytes:
        model = ""
        try:
            self._tenant()
            model, lacks_count = asked(request, self._names.with_vectors)
            check_model(model)
        except ValueError:
            # The dispatcher has the reason, and refuses it.
            lacks_count = False
        except DispatchError as error:
            if admitted is None:
                self.refused(error.code)
            raise
        if lacks_count:
            request = with_count(request)
        if admitted is not None:
            answer = await self._dispatcher.infer(
                request, timeout=timeout, metadata=metadata, caller=admitted.caller, admitted=admitted
            )
        else:
            with self.admitted(len(request), timeout=timeout, caller=caller, work=work_of(request), model=model) as own:
                answer = await self._dispatcher.infer(
                    request, timeout=timeout, metadata=metadata, caller=own.caller, admitted=own
                )
        return without_count(answer) if lacks_count else answer

    @contextmanager
    def admitted(
        self,
        size: int,
        *,
        timeout: float | None,
        caller: Caller,  # noqa: ARG002 - the tenant is the caller
        work: int | None = None,
        model: str = "",
    ) -> Iterator[Admission]:
        try:
            tenant = self._tenant()
            names = self._names.of_part(model)
            use_model("" if names is None else names.served.name)
            # Envoy has charged what it admitted, and will see the answer.
            limits = [one for one in current_limits() if one.model or not is_admitted()]
            charges = self._quotas.enter_all(limits, estimate(size if work is None else work))
        except DispatchError as error:
            self.refused(error.code)
            raise
        own: Admission | None = None
        code = _CODE.CANCELLED
        try:
            as_caller = Caller(tenant.name, tenant.weight, is_tenant=True)
            with self._dispatcher.admitted(size, timeout=timeout, caller=as_caller) as own:
                yield own
            code = _CODE.OK
        except Exception as error:
            code = error.code if isinstance(error, DispatchError) else _CODE.INTERNAL
            raise
        finally:
            for charge in charges:
                self._leave(charge, code, own.tokens if own is not None else 0)

    def _leave(self, charge: Charge, code: grpc.StatusCode, tokens: int) -> None:
        """tokens: of the answer."""
        charged = tokens
        if code in PERHAPS_COMPUTED or (code is _CODE.OK and not tokens):
            charged = max(tokens, charge.tokens)
        requests = 1 if code is _CODE.OK or code in PERHAPS_COMPUTED or tokens or is_clients_fault(code) else 0
        self._quotas.leave(charge, answered=code is _CODE.OK, tokens=tokens, requests=requests, charged=charged)

    async def call(self, method: str, request: bytes, *, timeout: float | None, server: str | None = None) -> bytes:
        self._tenant()
        return await self._dispatcher.call(method, request, timeout=timeout, server=server)

    @staticmethod
    def _tenant() -> Tenant:
        tenant = current_tenant()
        if tenant is None:
            raise DispatchError(_CODE.UNAUTHENTICATED, NO_KEY)
        return tenant


def is_clients_fault(code: grpc.StatusCode) -> bool:
    """Whether a request with this end is charged although it has no answer."""
    return code is not _CODE.RESOURCE_EXHAUSTED and STATUSES[code.name].http < _CLIENTS_FAULT


_NAME, _OUTPUTS = 1, 6
"""Fields of ModelInferRequest."""
_RESPONSE_OUTPUTS, _RAW = 5, 6
"""Fields of ModelInferResponse."""
_COUNT = b"num_tokens"
_ASKED = field(_OUTPUTS, field(_NAME, _COUNT))


def asked(request: bytes, counted: Collection[bytes]) -> tuple[str, bool]:
    """The model of an encoded ModelInferRequest, and whether its answer lacks `num_tokens` though it could have it.

    counted: the models with an output `num_tokens`.
    Without any output in the request, Triton sends all. Raises ValueError for bytes that are no such request.
    """
    fields = Fields(request)
    model, outputs = b"", []
    for number, kind, _, at, end in fields.within(0, len(request)):
        if kind == BYTES and number == _NAME:
            model = request[at:end]
        elif kind == BYTES and number == _OUTPUTS:
            outputs.append(_name(fields, request, at, end))
    return model.decode(), bool(outputs) and model in counted and _COUNT not in outputs


def with_count(request: bytes) -> bytes:
    """The request, asking for `num_tokens`, too: a field may be appended to an encoded message."""
    return request + _ASKED


def without_count(answer: bytes) -> bytes:
    """The encoded ModelInferResponse without the output `num_tokens`."""
    fields = Fields(answer)
    names: list[bytes] = []
    spans: dict[int, list[tuple[int, int]]] = {_RESPONSE_OUTPUTS: [], _RAW: []}
    for number, kind, begin, at, end in fields.within(0, len(answer)):
        if kind == BYTES and number in spans:
            spans[number].append((begin, end))
            if number == _RESPONSE_OUTPUTS:
                names.append(_name(fields, answer, at, end))
    if _COUNT not in names:
        return answer
    place = names.index(_COUNT)
    kept, at = [], 0
    for begin, end in sorted(spans[which][place] for which in spans):
        kept.append(answer[at:begin])
        at = end
    return b"".join((*kept, answer[at:]))


def _name(fields: Fields, message: bytes, at: int, end: int) -> bytes:
    name = b""
    for number, kind, _, start, stop in fields.within(at, end):
        if kind == BYTES and number == _NAME:
            name = message[start:stop]
    return name
