"""Any JSON is a request or a bad request. No other error is raised.

A text that has no UTF-8 form is a bad request too: errors.py does this for all endpoints.
"""

import json
from contextlib import suppress

from hypothesis import given, settings
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2

from tritonembed_manager.router.apis.http import cohere, tei
from tritonembed_manager.router.apis.http.errors import BadRequest
from tritonembed_manager.router.apis.http.kserve_admin import log_request, trace_request
from tritonembed_manager.router.apis.http.kserve_json import read_raw
from tritonembed_manager.router.apis.http.kserve_json import read_request as read_infer
from tritonembed_manager.router.apis.http.openai import read_request as read_openai
from tritonembed_manager.router.apis.http.vector_requests import prepare
from tritonembed_manager.router.data.model_names import ServedNames
from tritonembed_protocol.served import FIRST_MODEL

NUMBERS = st.integers(-3, 3) | st.sampled_from([2**31, 2**63, -(2**63), 2**64, 10**400]) | st.floats()
SCALARS = st.none() | st.booleans() | NUMBERS | st.text(st.characters(codec=None), max_size=3)
ANYTHING = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
)
DATATYPES = st.sampled_from(["BYTES", "INT8", "UINT64", "FP16", "FP32", "BOOL", "BF16", "X", "", "5"])


def sometimes(names, **likely):
    """An object with these names. Each value is probably of the right kind, or else anything."""
    return st.fixed_dictionaries(
        {}, optional={name: (likely[name] | ANYTHING) if name in likely else ANYTHING for name in names}
    )


SHAPES = st.lists(st.integers(0, 3), max_size=3)
PARAMETERS = sometimes(["binary_data_size", "binary_data", "shared_memory_region", "classification"])
TENSORS = sometimes(
    ["name", "datatype", "shape", "parameters", "data"],
    name=st.just("text"),
    datatype=DATATYPES,
    shape=SHAPES,
    parameters=PARAMETERS,
    data=st.lists(SCALARS, max_size=4),
)
AS_NUMBERS = sometimes(
    ["name", "parameters"],
    name=st.sampled_from(["embedding", "embedding_fp32", "num_tokens"]),
    parameters=sometimes(["as", "binary_data"], **{"as": st.just("FP32"), "binary_data": st.booleans()}),
)
INFER = sometimes(
    ["id", "parameters", "inputs", "outputs"],
    inputs=st.lists(TENSORS, max_size=2),
    outputs=st.lists(TENSORS, max_size=2) | st.lists(AS_NUMBERS, max_size=2),
    parameters=st.dictionaries(st.text(max_size=3) | st.just("binary_data_output"), SCALARS, max_size=3),
)
OPENAI = sometimes(
    [
        *["input", "model", "encoding_format", "dimensions", "user", "input_type"],
        *["truncate", "prompt_name", "prompt", "normalize"],
    ],
    input=st.lists(st.text(st.characters(codec=None)) | st.lists(NUMBERS, max_size=3), max_size=3),
    model=st.just("m"),
    encoding_format=st.just("float"),
    truncate=st.just("END"),
    prompt=st.text(st.characters(codec=None), max_size=3),
)

TEXT = st.text(st.characters(codec=None), max_size=3)
PAIR = sometimes(["source_sentence", "sentences"], source_sentence=TEXT, sentences=st.lists(TEXT, max_size=2))
TEI = sometimes(
    tei._FIELDS,
    inputs=TEXT | st.lists(TEXT, max_size=3) | PAIR,
    truncate=st.booleans(),
    truncation_direction=st.sampled_from(["left", "Right", "up"]),
    parameters=sometimes(tei._PARAMETERS, normalize=st.booleans()),
)
CONTENT = sometimes(["type", "text"], type=st.just("text"), text=TEXT)
COHERE = sometimes(
    cohere._V2_FIELDS,
    model=st.just("m"),
    texts=st.lists(TEXT, max_size=3),
    inputs=st.lists(sometimes(["content"], content=st.lists(CONTENT, max_size=2)), max_size=2),
    images=st.none(),
    max_tokens=st.none(),
    input_type=st.sampled_from(list(cohere.INPUT_TYPES)),
    embedding_types=st.lists(st.sampled_from(cohere.EMBEDDING_TYPES), max_size=3),
    truncate=st.sampled_from(["NONE", "END"]),
)
TOKENIZE = sometimes(tei.TOKENIZE_FIELDS, inputs=TEXT | st.lists(TEXT, max_size=3), prompt_name=TEXT)
DECODE = sometimes(tei.DECODE_FIELDS, ids=st.lists(NUMBERS, max_size=3))
LITELLM = sometimes(["inputs"], inputs=st.lists(TENSORS, max_size=1))


@settings(max_examples=400)
@given(TEI, st.sampled_from([None, "embed", "embed_sparse", "embed_all", "similarity"]))
def test_tei(body, task):
    with suppress(BadRequest, UnicodeEncodeError):
        assert list(prepare(tei.read_request(json.loads(json.dumps(body)), task, FIRST_MODEL)))


@settings(max_examples=400)
@given(COHERE, st.sampled_from([1, 2]))
def test_cohere(body, version):
    with suppress(BadRequest, UnicodeEncodeError):
        request = cohere.read_request(json.loads(json.dumps(body)), ServedNames(("m",)), version)
        assert list(prepare(request))
        assert request.embedding_types != []


@given(TOKENIZE, DECODE)
def test_tokens(tokenize, decode):
    for read, body in ((tei.read_tokenize, tokenize), (tei.read_decode, decode)):
        with suppress(BadRequest, UnicodeEncodeError):
            assert read(json.loads(json.dumps(body)), FIRST_MODEL)[1]


@given(LITELLM)
def test_litellm(body):
    with suppress(BadRequest, UnicodeEncodeError):
        read_infer(json.dumps(body).encode(), None, "embedding", "", of_litellm=True)


@settings(max_examples=400)
@given(INFER, st.binary(max_size=4), st.sampled_from(["embedding", "other"]))
def test_kserve(body, behind, model):
    header = json.dumps(body).encode()
    with suppress(BadRequest, UnicodeEncodeError):
        request = read_infer(header + behind, len(header), model, "")
        assert len(request.message.inputs) == len(request.message.raw_input_contents)
        request.message.SerializeToString()


@settings(max_examples=400)
@given(OPENAI)
def test_openai(body):
    with suppress(BadRequest, UnicodeEncodeError):
        request = read_openai(json.loads(json.dumps(body)), ServedNames(("m",)))
        assert request.elements
        assert list(prepare(request))


@given(st.dictionaries(st.text(max_size=3), ANYTHING, max_size=3))
def test_settings(body):
    for read in (log_request, lambda found: trace_request("m", found)):
        with suppress(BadRequest, UnicodeEncodeError):
            read(json.loads(json.dumps(body)))


@given(st.binary(max_size=9), st.lists(st.tuples(DATATYPES, st.lists(st.integers(-1, 3), max_size=3)), max_size=2))
def test_a_raw_body(body, tensors):
    metadata = service_pb2.ModelMetadataResponse(name="m")
    for datatype, shape in tensors:
        metadata.inputs.add(name="x", datatype=datatype, shape=shape)
    with suppress(BadRequest, UnicodeEncodeError):
        read_raw(body, metadata, "")
