"""The HTTP API as an OpenAPI document (/openapi.json) and as a page for people (/docs).

Both are made of the application's own routes: their paths, the docstrings of their handlers, the JSON schemas of their
bodies, and the errors in the form of each API. A test compares the schemas with what the readers accept.
"""

import base64
import hashlib
import inspect
import re
from collections.abc import Iterator
from html import escape
from importlib.metadata import version
from typing import Any

from aiohttp import web

from tritonembed_manager.router.apis.http.cohere import EMBEDDING_TYPES as COHERE_TYPES
from tritonembed_manager.router.apis.http.cohere import INPUT_TYPES as COHERE_INPUT_TYPES
from tritonembed_manager.router.apis.http.errors import BadRequest, form_of_route
from tritonembed_manager.router.apis.http.status import HEALTH
from tritonembed_manager.router.apis.http.vector_requests import MODELS
from tritonembed_protocol.types import INPUT_TYPES, OUTPUT_TYPES, TRUNCATE

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
@media (prefers-color-scheme: dark) { body { background: #16181c; color: #ddd; } a { color: #8ab4f8; } }
h2 { margin-top: 2rem; } summary { cursor: pointer; padding: .2rem 0; }
code { font-family: ui-monospace, monospace; } table { margin: .5rem 0 1rem 1.2rem; border-spacing: 0; }
td { padding: .1rem 1rem .1rem 0; vertical-align: top; } .verb { display: inline-block; width: 4rem; font-weight: 600; }
"""
_HASH = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
_HEADERS = {
    "Cache-Control": "no-cache",
    "Content-Security-Policy": f"default-src 'none'; style-src 'sha256-{_HASH}'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
_ANY = ("GET", "POST")
"""The methods to show for a route of all methods."""
_OPEN = frozenset((*HEALTH, "/health", "/v2/health/live", "/v2/health/ready"))
"""Routes that need no key by default."""


class OpenApi:
    """needs_key: whether there are tenants."""

    def __init__(self, *, needs_key: bool) -> None:
        self._needs_key = needs_key
        self._made: dict[str, Any] | None = None

    def routes(self) -> list[web.RouteDef]:
        return [web.get("/openapi.json", self.document), web.get("/docs", self.page)]

    async def document(self, request: web.Request) -> web.Response:
        """This API as an OpenAPI document."""
        return web.json_response(self._document(request.app))

    async def page(self, request: web.Request) -> web.Response:
        """This API as a page."""
        return web.Response(text=_page(self._document(request.app)), content_type="text/html", headers=_HEADERS)

    def _document(self, app: web.Application) -> dict[str, Any]:
        if self._made is None:
            self._made = describe(app, needs_key=self._needs_key)
        return self._made


def describe(app: web.Application, *, needs_key: bool) -> dict[str, Any]:
    """The OpenAPI document of an application. needs_key: whether there are tenants."""
    paths: dict[str, dict[str, Any]] = {}
    for method, path, handler in _routes(app):
        operation = _operation(app, method, path, handler)
        if needs_key and path not in _OPEN:
            operation["security"] = [{"bearer": []}, {"key": []}]
        paths.setdefault(path, {})[method.lower()] = operation
    found: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {"title": "tritonembed", "version": version("tritonembed")},
        "paths": paths,
    }
    if needs_key:
        schemes = {
            "bearer": {"type": "http", "scheme": "bearer"},
            "key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
        }
        found["components"] = {"securitySchemes": schemes}
    return found


def _routes(app: web.Application) -> Iterator[tuple[str, str, Any]]:
    """Method, path and handler of each route, without those with a trailing slash and those of files."""
    for route in app.router.routes():
        path = "" if route.resource is None else route.resource.canonical
        if (len(path) > 1 and path.endswith("/")) or "." in path.removesuffix(".json") or route.method == "HEAD":
            continue
        for method in _ANY if route.method == "*" else (route.method,):
            yield method, path, route.handler


def _operation(app: web.Application, method: str, path: str, handler: Any) -> dict[str, Any]:
    status, example = form_of_route(app, method, path)(BadRequest("what is wrong, in one line"))
    operation: dict[str, Any] = {
        "tags": [_tag(handler)],
        "summary": _summary(handler),
        "operationId": re.sub(r"\W+", "_", f"{method.lower()}{path}").strip("_"),
        "responses": {
            "200": {"description": "The answer."},
            "default": {
                "description": f"An error, such as {status}.",
                "content": {"application/json": {"example": example}},
            },
        },
    }
    names = re.findall(r"\{(\w+)\}", path)
    if names:
        operation["parameters"] = [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in names
        ]
    body = BODIES.get(_same_route(path))
    if method == "POST" and body is not None:
        operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": body}}}
    return operation


def _same_route(path: str) -> str:
    """The route with the same body as a route that names a model, or as Azure's route."""
    if path.startswith("/openai/"):
        return f"/v1/{path.rpartition('/')[2]}"
    return path.removeprefix(f"{MODELS}/{{model}}") or "/"


def _summary(handler: Any) -> str:
    return " ".join((inspect.getdoc(handler) or "").partition("\n\n")[0].split())


def _tag(handler: Any) -> str:
    """The name of a handler's API: how its module's docstring begins."""
    module = inspect.getdoc(inspect.getmodule(handler)) or ""
    return re.split(r"[:,.]\s", module, maxsplit=1)[0]


def _page(document: dict[str, Any]) -> str:
    by_tag: dict[str, list[str]] = {}
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            by_tag.setdefault(operation["tags"][0], []).append(_entry(path, method, operation))
    title = escape(f"{document['info']['title']} {document['info']['version']}: HTTP API")
    sections = "".join(f"<h2>{escape(tag)}</h2>\n{''.join(entries)}" for tag, entries in by_tag.items())
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f"<style>{_STYLE}</style></head>\n<body><h1>{title}</h1>\n"
        f'<p>The same for programs: <a href="openapi.json">openapi.json</a>.</p>\n{sections}</body></html>\n'
    )


def _entry(path: str, method: str, operation: dict[str, Any]) -> str:
    head = f'<span class="verb">{method.upper()}</span> <code>{escape(path)}</code> {escape(operation["summary"])}'
    schema = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema")
    if schema is None:
        return f"<p>{head}</p>\n"
    rows = "".join(
        f"<tr><td><code>{escape(name)}</code></td><td>{escape(_type(part))}</td>"
        f"<td>{'required' if name in schema['required'] else ''}</td></tr>"
        for name, part in schema["properties"].items()
    )
    return f"<details><summary>{head}</summary><table>{rows}</table></details>\n"


def _type(schema: dict[str, Any]) -> str:
    """A schema in a few words."""
    if "oneOf" in schema:
        return " or ".join(map(_type, schema["oneOf"]))
    if "enum" in schema:
        return ", ".join(schema["enum"])
    if schema["type"] == "array" and "items" in schema:
        return f"list of ({_type(schema['items'])})"
    return str(schema["type"])


Schema = dict[str, Any]

_TEXT: Schema = {"type": "string"}
_TEXTS: Schema = {"type": "array", "items": _TEXT, "minItems": 1}
_IDS: Schema = {"type": "array", "items": {"type": "integer"}, "minItems": 1}
_INPUT: Schema = {"oneOf": [_TEXT, _TEXTS, _IDS, {"type": "array", "items": _IDS, "minItems": 1}]}
_BOOL: Schema = {"type": "boolean"}
_OBJECT: Schema = {"type": "object"}
_COUNT: Schema = {"type": "integer", "minimum": 1}


def _choice(*values: str) -> Schema:
    return {"type": "string", "enum": list(values)}


def _object(required: list[str], **properties: Schema) -> Schema:
    return {"type": "object", "required": required, "properties": properties}


_OPENAI = _object(
    ["input"],
    input=_INPUT,
    model=_TEXT,
    encoding_format=_choice("float", "base64"),
    dimensions=_COUNT,
    user=_TEXT,
    modality=_choice("text"),
    input_type=_choice(*INPUT_TYPES, "document", "search_document", "search_query"),
    truncate=_choice(*TRUNCATE),
    embedding_type=_choice(*OUTPUT_TYPES),
    prompt_name=_TEXT,
    prompt=_TEXT,
    instruction=_TEXT,
    chunk_tokens=_COUNT,
    chunk_overlap={"type": "integer", "minimum": 0},
    normalize=_BOOL,
    embedding_space=_TEXT,
)
_TEI_PARAMETERS: dict[str, Schema] = {
    "truncate": _BOOL,
    "truncation_direction": _choice("right", "left"),
    "prompt_name": _TEXT,
    "normalize": _BOOL,
    "dimensions": _COUNT,
    "encoding_format": _choice("float"),
}
_TEI_MORE: dict[str, Schema] = {
    **_TEI_PARAMETERS,
    "parameters": {"type": "object", "properties": _TEI_PARAMETERS},
    "options": _OBJECT,
    "model": _TEXT,
}
_PAIR = _object(["source_sentence", "sentences"], source_sentence=_TEXT, sentences=_TEXTS)
_COHERE: dict[str, Schema] = {
    "model": _TEXT,
    "texts": _TEXTS,
    "images": {"type": "null"},
    "input_type": _choice(*COHERE_INPUT_TYPES),
    "embedding_types": {"type": "array", "items": _choice(*COHERE_TYPES), "minItems": 1},
    "truncate": _choice("NONE", "START", "END"),
}
_CONTENT = _object(["type", "text"], type=_choice("text"), text=_TEXT)
_COHERE_INPUT = _object(["content"], content={"type": "array", "items": _CONTENT, "minItems": 1, "maxItems": 1})
_TENSOR = _object(
    ["name", "datatype", "shape"],
    name=_TEXT,
    datatype=_TEXT,
    shape={"type": "array", "items": {"type": "integer"}},
    data={"type": "array"},
    parameters=_OBJECT,
)
_INFER = _object(
    ["inputs"],
    id=_TEXT,
    parameters=_OBJECT,
    inputs={"type": "array", "items": _TENSOR},
    outputs={"type": "array", "items": _object(["name"], name=_TEXT, parameters=_OBJECT)},
)
_NULL: Schema = {"type": "null"}
_DOCUMENTS: Schema = {"type": "array", "items": {"oneOf": [_TEXT, _object(["text"], text=_TEXT)]}, "minItems": 1}
_RERANK: dict[str, Schema] = {
    "model": _TEXT,
    "query": _TEXT,
    "documents": _DOCUMENTS,
    "top_n": _COUNT,
    "return_documents": _BOOL,
    "max_tokens_per_doc": _COUNT,
    "priority": {"type": "integer"},
}
_RERANK_V1 = _object(["query", "documents"], **_RERANK, max_chunks_per_doc=_NULL, rank_fields=_NULL)
_TEI_SCORES: dict[str, Schema] = {
    "model": _TEXT,
    "raw_scores": _BOOL,
    "truncate": _BOOL,
    "truncation_direction": _choice("right", "left"),
}
_ROWS: Schema = {"type": "array", "items": {**_TEXTS, "maxItems": 2}, "minItems": 1}
_SIDE: Schema = {"oneOf": [_TEXT, _TEXTS]}
_SCORE = _object(
    ["text_1", "text_2"],
    model=_TEXT,
    text_1=_SIDE,
    text_2=_SIDE,
    use_activation=_BOOL,
    late_interaction=_BOOL,
    priority={"type": "integer"},
    user=_TEXT,
    encoding_format=_TEXT,
)
BODIES: dict[str, Schema] = {
    "/v1/embeddings": _OPENAI,
    "/embeddings": _OPENAI,
    "/": _object(["inputs"], inputs={"oneOf": [*_INPUT["oneOf"], _PAIR]}, **_TEI_MORE),
    "/embed": _object(["inputs"], inputs=_INPUT, **_TEI_MORE),
    "/embed_sparse": _object(["inputs"], inputs=_INPUT, **_TEI_MORE),
    "/embed_all": _object(["inputs"], inputs=_INPUT, **_TEI_MORE),
    "/similarity": _object(["inputs"], inputs=_PAIR, **_TEI_MORE),
    "/tokenize": _object(["inputs"], inputs={"oneOf": [_TEXT, _TEXTS]}, add_special_tokens=_BOOL, prompt_name=_TEXT),
    "/decode": _object(
        ["ids"], ids={"oneOf": [_IDS, {"type": "array", "items": _IDS, "minItems": 1}]}, skip_special_tokens=_BOOL
    ),
    "/v1/embed": _object(["texts"], **_COHERE),
    "/v2/embed": _object(
        ["input_type"],
        **_COHERE,
        inputs={"type": "array", "items": _COHERE_INPUT, "minItems": 1},
        output_dimension=_COUNT,
        max_tokens={"type": "null"},
        priority={"type": "integer"},
    ),
    "/v1/rerank": _RERANK_V1,
    "/v2/rerank": _object(["query", "documents"], **_RERANK),
    # Either texts or documents, each with its own fields.
    "/rerank": _object(["query"], **{"texts": _TEXTS, "return_text": _BOOL, **_TEI_SCORES, **_RERANK}),
    "/predict": _object(["inputs"], inputs={"oneOf": [_TEXT, _TEXTS, _ROWS]}, **_TEI_SCORES),
    "/score": _SCORE,
    "/v1/score": _SCORE,
    "/v2/models/{model}/infer": _INFER,
    "/v2/models/{model}/versions/{version}/infer": _INFER,
    "/triton/embeddings": _INFER,
}
"""The schema of the body, by route of a POST."""
