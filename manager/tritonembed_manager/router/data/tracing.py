"""OpenTelemetry: a span per request, whose context is sent to Triton as `traceparent`.

Tracing is on if OpenTelemetry's SDK is installed (the extra `tracing`) and its own variables name an exporter:
OTEL_EXPORTER_OTLP_ENDPOINT or OTEL_EXPORTER_OTLP_TRACES_ENDPOINT, or OTEL_TRACES_EXPORTER (otlp, console). Otherwise
tracing costs nothing, and a caller's `traceparent` is forwarded unchanged.
"""

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import grpc

from tritonembed_manager.router.interfaces import Admission, Caller, Dispatcher, DispatchError, Metadata, ServerView
from tritonembed_protocol.space import HEADER

HEADERS = ("traceparent", "tracestate")
_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_NAME = "tritonembed_manager"
_CODE = grpc.StatusCode
_OWN_ERRORS = (
    *(_CODE.UNKNOWN, _CODE.DEADLINE_EXCEEDED, _CODE.UNIMPLEMENTED, _CODE.INTERNAL, _CODE.UNAVAILABLE, _CODE.DATA_LOSS),
)
_log = logging.getLogger(__name__)


def metadata_of(headers: Mapping[str, str]) -> Metadata:
    """An HTTP request's headers that are sent to Triton, as gRPC metadata."""
    return [(name, headers[name]) for name in (*HEADERS, HEADER) if name in headers]


_serving: ContextVar[Any] = ContextVar("serving_span", default=None)
"""The span of the current client's request."""


class Tracing:
    """Spans of one provider; without a provider, no spans."""

    def __init__(self, provider: Any = None) -> None:
        self.provider = provider
        if provider is not None:
            from opentelemetry import context, propagate, trace

            self._context, self._propagate, self._trace = context, propagate, trace
            self._tracer = provider.get_tracer(_NAME)

    @contextmanager
    def serving(self, name: str, headers: Mapping[str, str]) -> Iterator[Any]:
        """Yields the span of a client's request, a child of the client's span; None without a provider."""
        if self.provider is None:
            yield None
            return
        parent = self._propagate.extract({key.lower(): value for key, value in headers.items()})
        with self._span(name, parent, self._trace.SpanKind.SERVER) as span:
            _serving.set(span)
            yield span

    def enter(self, method: str, metadata: Metadata) -> Any:
        """Begin the span of a gRPC call, for the rest of the current task; None without a provider. `end` must follow.

        method: such as `inference.GRPCInferenceService/ModelInfer`.
        """
        if self.provider is None:
            return None
        service, _, name = method.rpartition("/")
        span = self._tracer.start_span(
            method,
            self._propagate.extract({key: value for key, value in metadata if isinstance(value, str)}),
            kind=self._trace.SpanKind.SERVER,
            attributes={"rpc.system": "grpc", "rpc.service": service, "rpc.method": name},
        )
        # A call has a task of its own, so nothing has to be restored.
        self._context.attach(self._trace.set_span_in_context(span))
        _serving.set(span)
        return span

    def end(self, span: Any, code: grpc.StatusCode) -> None:
        """The call of a span has ended."""
        span.set_attribute("rpc.grpc.status_code", code.value[0])
        # OpenTelemetry counts these as the server's own errors.
        if code in _OWN_ERRORS:
            self.failed(span)
        span.end()

    def note(self, admission: Admission, attributes: Mapping[str, Any]) -> None:
        """Set attributes of the current request's spans: its client's, and the one to a server if it is current."""
        known = {
            "tritonembed.server": admission.server,
            "gen_ai.usage.input_tokens": admission.tokens,
            "tritonembed.sentences": admission.sentences,
            "tritonembed.wait_s": admission.waited,
            "tritonembed.server_s": admission.at_server,
            **attributes,
        }
        for span in {id(each): each for each in (_serving.get(), self._trace.get_current_span()) if each}.values():
            span.set_attributes(known)

    def trace_id(self) -> str:
        """The current request's trace id, in hexadecimal; empty if it is not sampled, and without a provider."""
        if self.provider is None:
            return ""
        context = self._trace.get_current_span().get_span_context()
        return f"{context.trace_id:032x}" if context.is_valid and context.trace_flags.sampled else ""

    def over(self, dispatcher: Dispatcher) -> Dispatcher:
        """The dispatcher, wrapped so that each request has a span."""
        return dispatcher if self.provider is None else _Traced(dispatcher, self)

    @contextmanager
    def dispatching(self, metadata: Metadata) -> Iterator[tuple[Any, Metadata]]:
        """Yields the span of a request to the servers, and the metadata with its context instead of the caller's."""
        current = self._trace.get_current_span()
        parent = None
        if not current.get_span_context().is_valid:
            parent = self._propagate.extract({key: value for key, value in metadata if isinstance(value, str)})
        with self._span("inference.GRPCInferenceService/ModelInfer", parent, self._trace.SpanKind.CLIENT) as span:
            carrier: dict[str, str] = {}
            self._propagate.inject(carrier)
            kept = [pair for pair in metadata if pair[0] not in (*HEADERS, *carrier)]
            yield span, [*kept, *carrier.items()]

    def failed(self, span: Any) -> None:
        """Mark the span of a failed request."""
        span.set_status(self._trace.StatusCode.ERROR)

    def _span(self, name: str, parent: Any, kind: Any) -> Any:
        # An exception's message and traceback may hold a request's text: they stay out of the span.
        return self._tracer.start_as_current_span(
            name, parent, kind=kind, record_exception=False, set_status_on_exception=False
        )

    def close(self) -> None:
        """Send the spans that are left."""
        if self.provider is not None:
            self.provider.shutdown()


class _Traced:
    def __init__(self, dispatcher: Dispatcher, tracing: Tracing) -> None:
        self._dispatcher = dispatcher
        self._tracing = tracing
        self.call = dispatcher.call
        self.admitted = dispatcher.admitted
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
        with self._tracing.dispatching(metadata) as (span, extended):
            span.set_attribute("rpc.system", "grpc")
            span.set_attribute("rpc.request.size", len(request))
            try:
                return await self._dispatcher.infer(
                    request, timeout=timeout, metadata=extended, caller=caller, admitted=admitted
                )
            except DispatchError as error:
                span.set_attribute("rpc.grpc.status_code", error.code.value[0])
                self._tracing.failed(span)
                raise

    def servers(self) -> list[ServerView]:
        return self._dispatcher.servers()

    def serving(self, model: str = "") -> list[str]:
        return self._dispatcher.serving(model)


def from_environment(environment: Mapping[str, str] = os.environ) -> Tracing:
    """Tracing as OpenTelemetry's variables configure it. Logs a warning if that is not possible."""
    exporter = environment.get("OTEL_TRACES_EXPORTER") or ("otlp" if any(map(environment.get, _ENDPOINTS)) else "none")
    if exporter == "none" or environment.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return Tracing()
    try:
        return Tracing(_provider(exporter, environment))
    except ImportError:
        _log.warning("no traces: OTEL_… turns them on, but the extra tritonembed[tracing] is not installed")
    except ValueError as error:
        _log.warning("no traces: %s", error)
    return Tracing()


def _provider(exporter: str, environment: Mapping[str, str]) -> Any:
    from opentelemetry.sdk.resources import SERVICE_NAME, Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter, SpanExporter

    sender: SpanExporter
    if exporter == "console":
        sender = ConsoleSpanExporter()
    elif exporter == "otlp":
        sender = _otlp(environment)
    else:
        raise ValueError("OTEL_TRACES_EXPORTER must be otlp, console or none")
    name = environment.get("OTEL_SERVICE_NAME") or "tritonembed-manager"
    # `create` reads the other attributes from the variables.
    provider = TracerProvider(resource=Resource.create({SERVICE_NAME: name}))
    provider.add_span_processor(BatchSpanProcessor(sender))
    return provider


def _otlp(environment: Mapping[str, str]) -> Any:
    protocol = environment.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or environment.get("OTEL_EXPORTER_OTLP_PROTOCOL")
    if protocol == "grpc":
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as OverGrpc

        return OverGrpc()
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as OverHttp

    return OverHttp()
