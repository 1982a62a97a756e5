"""Of Triton's log people see warnings, errors and our own lines, and one line of why a start failed."""

import pytest

from tritonembed_manager.server_log import ServerLog, is_worth_showing

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


def test_what_is_not_text_does_not_stop_it():
    assert ServerLog(everything=True).take(b"\xff\xfe\n") == ["\ufffd\ufffd"]


def test_our_models_own_words_are_found():
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
