"""The manager shows only warnings, errors and our own lines of Triton's log, and one line why a start failed."""

import pytest

from tritonembed_manager.server.life import ServerLog, is_worth_showing

INFO = 'I1123 18:59:41.388555 5173 model_lifecycle.cc:472] "loading: embedding:1"'
WARNING = 'W1123 18:59:41.388555 5173 metrics.cc:1] "power is unknown"'
NOISE = 'E1123 18:59:41.389193 5173 server.cc:241] "CudaDriverHelper has not been initialized."'
INSTANCE = (
    'E1123 18:59:48.9 5301 backend_model.cc:692] "ERROR: Failed to create instance: ValueError: boom\\n\\nAt:\\n  x"'
)
OTHER = (
    "E1123 18:59:53.064094 5341 model_lifecycle.cc:642] \"failed to load 'embedding' version 1: "
    'Internal: ValueError: boom\\n\\nAt:\\n  /somewhere/model.py(7): initialize\\n"'
)
OURS = (
    "E1123 18:59:48.976482 5301 model_lifecycle.cc:642] \"failed to load 'tokenizer' version 1: "
    'Internal: TritonModelException: tritonembed: the model has no tokenizer\\n\\nAt:\\n  /somewhere/model.py(6)\\n"'
)


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        (INFO, False),
        (WARNING, True),
        (OTHER, True),
        (NOISE, False),
        ("I1123 18:59:41.3 5 model.py:1] \"tritonembed: the direct executor serves 'bert'\"", True),
        ("tritonembed: the scheduler serves", True),
        ("tritonembed: embedder_0_0: starting: loading the weights", False),
        ("(MainProcess pid=7) WARNING 11-23 18:59:41 [config.py:1] something of vLLM", False),
        ("(EngineCore pid=7) ERROR 11-23 18:59:41 [core.py:1] something of vLLM", True),
        ("INFO 11-23 18:59:41 [config.py:1] something of vLLM", False),
        ("+-----+-----+", False),
        ("", False),
    ],
)
def test_warnings_errors_and_our_lines_are_shown(line, shown):
    assert is_worth_showing(line) == shown


def test_lines_are_put_together_from_pieces():
    log = ServerLog()
    data = f"{INFO}\n{WARNING}\n".encode()
    shown = [line for i in range(len(data)) for line in log.take(data[i : i + 1])]
    assert shown == [WARNING]


def test_a_traceback_inside_a_line_is_cut_off():
    assert ServerLog().take(f"{OTHER}\n".encode()) == [OTHER.split("\\n")[0]]


def test_verbose_shows_everything():
    assert ServerLog(everything=True).take(f"{INFO}\n{OTHER}\n".encode()) == [INFO, OTHER]


def test_bytes_that_are_not_text_are_replaced():
    assert ServerLog(everything=True).take(b"\xff\xfe\n") == ["\ufffd\ufffd"]


def test_our_models_error_is_the_reason():
    log = ServerLog()
    log.take(f"{INFO}\n{NOISE}\n{OURS}\n".encode())
    assert log.our_reason() == "the model has no tokenizer"


def test_an_informative_line_of_ours_is_not_a_reason():
    log = ServerLog()
    log.take(b'I1123 18:59:41.3 5 model.py:1] "tritonembed: all is well"\n' + f"{OTHER}\n".encode())
    assert log.our_reason() is None


def test_any_other_failure_is_reduced_to_one_line_without_traceback():
    log = ServerLog()
    log.take(f"{NOISE}\n{INSTANCE}\n{OTHER}\nerror: creating server: Internal\n".encode())
    assert log.reason() == "failed to load 'embedding' version 1: Internal: ValueError: boom"


def test_without_an_error_line_the_last_line_is_the_reason():
    log = ServerLog()
    log.take(b"something\nunknown flag --x\n\n")
    assert log.reason() == "unknown flag --x"
    assert ServerLog().reason() == "it logged nothing"


def test_the_engines_own_lines_report_the_step_of_a_start():
    log = ServerLog()
    assert log.step == "starting tritonserver"
    log.take(f"{INFO}\ntritonembed: embedder_0_0: starting: loading the weights\n".encode())
    assert log.step == "loading the weights"
    assert log.take(b"tritonembed: embedder_0_0: starting: capturing CUDA graphs (34 of 101)\nother\n") == []
    assert log.step == "capturing CUDA graphs (34 of 101)"
    log.take(b'I1123 18:59:41.3 5 grpc_server.cc:2558] "Started GRPCInferenceService at 127.0.0.1:1"\n')
    assert log.step == "waiting for its first vectors"


def test_the_stack_of_a_server_ended_by_a_signal_is_no_reason():
    log = ServerLog()
    log.take(b"Signal (11) received.\n 0# 0x00005D3E0 in tritonserver\n12# 0x00007F9B in /lib/libc.so.6\n\n")
    assert log.reason() == "Signal (11) received."


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("/bin/bash: line 1: /tmp/a b/stub: Permission denied", "line 1: b/stub: Permission denied"),
        (
            "/x/triton_python_backend_stub: error while loading shared libraries: libpython3.11.so.1.0: cannot open",
            "error while loading shared libraries: libpython3.11.so.1.0: cannot open",
        ),
    ],
)
def test_the_shells_or_the_linkers_error_is_the_reason_why_a_stub_did_not_start(line, reason):
    log = ServerLog()
    assert log.stub_reason() == "no reason is known"
    log.take(f"{line}\n{INFO}\n".encode())
    assert log.stub_reason() == reason
