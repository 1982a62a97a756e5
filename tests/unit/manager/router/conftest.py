"""Fixtures for logs, memory and waiting times."""

import io
import logging
import sys
import threading
import warnings

import pytest

from tritonembed_manager.router.log import OURS, set_up


@pytest.fixture
def log_lines(monkeypatch):
    """A function of a log style. From its call on, this process logs to the stream that it returns."""
    loggers = [logging.getLogger(""), logging.getLogger(OURS)]
    before = [(list(logger.handlers), logger.level, logger.propagate) for logger in loggers]
    hooks = sys.excepthook, sys.unraisablehook, threading.excepthook, warnings.showwarning, logging.raiseExceptions
    stream = io.StringIO()

    def begin(style):
        monkeypatch.setattr("sys.stderr", stream)
        set_up(style)
        return stream

    yield begin
    for logger, (handlers, level, propagate) in zip(loggers, before, strict=True):
        for handler in logger.handlers:
            if handler not in handlers:
                handler.close()
        logger.handlers[:], logger.propagate = handlers, propagate
        logger.setLevel(level)
    sys.excepthook, sys.unraisablehook, threading.excepthook, warnings.showwarning, logging.raiseExceptions = hooks


@pytest.fixture(autouse=True)
def memory_of_a_worker(monkeypatch):
    """The tests' process uses more memory than a worker may, which would refuse requests."""
    monkeypatch.setattr("tritonembed_manager.router.data.admission._resident", lambda: 100 * 1024 * 1024)


@pytest.fixture
def short_verdict(monkeypatch):
    """Tests have no parent that reports dead servers, so requests wait only briefly for its verdict."""
    monkeypatch.setattr("tritonembed_manager.router.data.dispatcher.VERDICT_S", 0.1)
