"""Every line of the log has the chosen format and a bounded length, and holds nothing of a request."""

import asyncio
import json
import logging
import sys
import threading
import warnings

import pytest

from tritonembed_manager.router.log import LogOutput

SECRET = "Bearer 5ecre7"


def raised():
    try:
        raise ValueError(SECRET)
    except ValueError as error:
        return error


def from_asyncio():
    async def fail():
        raise ValueError(SECRET)

    async def main():
        task = asyncio.ensure_future(fail())
        await asyncio.sleep(0)
        del task
        await asyncio.sleep(0)

    asyncio.run(main())


def from_a_thread():
    thread = threading.Thread(target=lambda: json.loads(f"{{{SECRET}"))
    thread.start()
    thread.join()


def from_a_destructor():
    class Wrong:
        def __del__(self):
            raise ValueError(SECRET)

    Wrong()


SOURCES = {
    "aiohttp": lambda: logging.getLogger("aiohttp.server").error("from %s", SECRET, exc_info=raised()),
    "several lines": lambda: logging.getLogger("lib").error(f"it failed\n{SECRET}"),
    "asyncio": from_asyncio,
    "thread": from_a_thread,
    "destructor": from_a_destructor,
    "uncaught": lambda: sys.excepthook(ValueError, raised(), None),
    "warning": lambda: warnings.warn(SECRET, RuntimeWarning, stacklevel=1),
    "wrong arguments": lambda: logging.getLogger("lib").error("%d of %d", SECRET),
}


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.filterwarnings("default")
def test_a_line_of_any_library_has_the_chosen_format_and_no_secret(log_lines, source):
    stream = log_lines("json")
    SOURCES[source]()
    lines = stream.getvalue().splitlines()
    assert lines
    for line in lines:
        assert json.loads(line)["level"] in ("warning", "error")
        assert "5ecre7" not in line


def test_a_line_stays_one_line_and_is_cut(log_lines):
    stream = log_lines("text")
    logging.getLogger("tritonembed_manager").warning("a\nb\x1b[31mc\r\n%s", "x" * 10_000)
    [line] = stream.getvalue().splitlines()
    assert line.startswith("tritonembed-manager: a b [31mc x")
    assert len(line) < 2100


@pytest.fixture
def counted():
    now, logger = [0.0], logging.getLogger("tritonembed_manager.a_test")
    stream = __import__("io").StringIO()
    output = LogOutput("text", stream, lambda: now[0])
    logger.addHandler(output)
    logger.propagate = False
    logger.setLevel(logging.INFO)
    yield logger, stream, now
    logger.removeHandler(output)
    output.close()


def test_repeated_lines_are_counted_and_not_repeated(counted):
    logger, stream, now = counted
    for _ in range(42):
        logger.warning("the same")
    assert stream.getvalue() == "tritonembed-manager: the same\n"
    now[0] = 11.0
    logger.warning("another")
    assert stream.getvalue().splitlines()[1:] == [
        "tritonembed-manager: the same (repeated 41 times in 10 s)",
        "tritonembed-manager: another",
    ]
    logger.warning("the same")
    now[0] = 22.0
    logger.handlers[0].flush()
    assert stream.getvalue().splitlines()[3:] == ["tritonembed-manager: the same (repeated 1 times in 10 s)"]


def test_a_line_that_is_repeated_much_later_is_written_again(counted):
    logger, stream, now = counted
    logger.warning("the same")
    now[0] = 11.0
    logger.warning("the same")
    logger.info("news")
    logger.info("news")
    assert [line.partition(": ")[2] for line in stream.getvalue().splitlines()] == ["the same"] * 2 + ["news"] * 2
