"""One tritonserver in the foreground: started, watched, drained."""

import os
import selectors
import signal
import sys
import time

from tritonembed_manager.errors import ManagerError, StartError
from tritonembed_manager.probe import ReadinessProbe, is_short_of_stubs
from tritonembed_manager.server_log import ServerLog
from tritonembed_manager.server_process import ServerProcess
from tritonembed_manager.settings import ServerSettings
from tritonembed_manager.signals import SignalPipe
from tritonembed_manager.stubs import StubWatch

_LOOK_EVERY_S = 0.5
_STILL_STARTING_EVERY_S = 15.0
_GRACE_AFTER_DRAIN_S = 10.0


class Replica:
    """Runs a started server until it is told to stop, or until something of it breaks."""

    def __init__(self, server: ServerProcess, settings: ServerSettings) -> None:
        self._server = server
        self._settings = settings
        self._log = ServerLog(everything=settings.log_verbose)
        self._held_back: list[str] = []
        self._selector = selectors.DefaultSelector()
        self._stubs = StubWatch(self._selector)
        self._probe = ReadinessProbe(settings.local_host, settings.grpc_port)
        self._began = time.monotonic()
        self._next_look = self._began
        self._next_line = self._began + _STILL_STARTING_EVERY_S
        self._ready = False
        self._lost_while_starting = ""
        self._drain_until: float | None = None
        self._finished = False

    def run(self, signals: SignalPipe) -> None:
        """Returns when a signal has stopped the server. Raises ManagerError when it did not start or broke.

        In every case call the server's `close` afterwards.
        """
        log = self._server.output.fileno()
        os.set_blocking(log, False)
        sources = {log: "log", self._server.pidfd: "exit", signals.fd: "signal", self._probe.fd: "ready"}
        for fd, kind in sources.items():
            self._selector.register(fd, selectors.EVENT_READ, (kind, 0))
        self._probe.start()
        try:
            while not self._finished:
                self._turn(signals)
        finally:
            self._probe.stop()
            self._stubs.close()
            self._selector.close()

    def _turn(self, signals: SignalPipe) -> None:
        # The log first: what the server said last belongs before the news that it ended.
        events = sorted(self._selector.select(_LOOK_EVERY_S), key=lambda event: event[0].data[0] != "log")
        for key, _ in events:
            kind, pid = key.data
            if kind == "log":
                self._show_log()
            elif kind == "ready":
                self._became_ready()
            elif kind == "signal":
                self._told_to_stop(signals.read())
            elif kind == "exit":
                self._server_ended()
            elif kind == "stub":
                self._stub_ended(pid)
            if self._finished:
                return
        self._check_time()

    def _check_time(self) -> None:
        now = time.monotonic()
        if self._drain_until is not None:
            if now > self._drain_until:
                raise ManagerError(f"the server did not stop within {self._settings.drain_timeout:g} s: killed")
            return
        if now >= self._next_look:
            self._stubs.look(self._server.members())
            self._next_look = now + _LOOK_EVERY_S
        if self._ready:
            return
        if now - self._began > self._settings.startup_timeout:
            self._show_held_back()
            limit = f"{self._settings.startup_timeout:g} s (--startup-timeout)"
            raise ManagerError(f"not ready after {limit}: {self._probe.error}")
        if now > self._next_line:
            say(f"still starting ({now - self._began:.0f} s)")
            self._next_line += _STILL_STARTING_EVERY_S

    def _became_ready(self) -> None:
        self._selector.unregister(self._probe.fd)
        if self._drain_until is not None:
            return
        if self._probe.refused:
            raise ManagerError(f"the server started, but an inference fails: {self._probe.error}")
        self._stubs.look(self._server.members())
        if self._lost_while_starting:
            raise ManagerError(self._lost_while_starting)
        self._ready = True
        self._show_held_back()
        at, settings = self._settings.host, self._settings
        addresses = (
            f"grpc {at}:{settings.grpc_port} http {at}:{settings.http_port} metrics {at}:{settings.metrics_port}"
        )
        print(f"READY {addresses} in {time.monotonic() - self._began:.1f} s", flush=True)

    def _told_to_stop(self, received: list[signal.Signals]) -> None:
        name = received[-1].name
        if self._drain_until is not None or len(received) > 1:
            raise ManagerError(f"{name} while stopping: killed")
        if not self._ready:
            say(f"{name}: start abandoned")
            self._finished = True
            return
        say(f"{name}: finishing what is in flight (once more to kill)")
        self._drain_until = time.monotonic() + self._settings.drain_timeout + _GRACE_AFTER_DRAIN_S
        self._server.terminate()

    def _stub_ended(self, pid: int) -> None:
        model = self._stubs.forget(pid)
        if self._drain_until is not None:
            return
        news = f"a python process of the model {model!r} died (pid {pid}): the server is stopped"
        if not self._ready:
            # A server that can't start ends its other stubs, then itself, and its log says why: wait for that.
            self._lost_while_starting = news
        elif self._settings.model_control_mode == "none" or self._is_short_of_stubs(model):
            raise ManagerError(news)

    def _is_short_of_stubs(self, model: str) -> bool:
        """Under explicit and poll control a stub also ends because its model was unloaded or replaced."""
        self._stubs.look(self._server.members())
        running = sum(other == model for other in self._stubs.watched.values())
        return is_short_of_stubs(self._settings.local_host, self._settings.grpc_port, model, running)

    def _server_ended(self) -> None:
        self._show_log()
        self._finished = True
        if self._drain_until is not None:
            return
        status = _how(self._server.exit_status())
        if self._ready:
            raise ManagerError(f"tritonserver ended by itself ({status}): {self._log.reason()}")
        ours = self._log.our_reason()
        if ours is not None:
            raise StartError(f"{ours} (--log-verbose tells more)")
        raise ManagerError(f"tritonserver did not start ({status}): {self._log.reason()} (--log-verbose tells more)")

    def _show_log(self) -> None:
        log = self._server.output.fileno()
        try:
            while data := os.read(log, 65536):
                self._show(self._log.take(data))
        except BlockingIOError:
            return
        if log in self._selector.get_map():
            self._selector.unregister(log)

    def _show(self, lines: list[str]) -> None:
        """While starting, lines wait: of a start that fails only the reason is shown."""
        if not self._ready and not self._settings.log_verbose:
            self._held_back += lines
            return
        for line in lines:
            print(line, file=sys.stderr)

    def _show_held_back(self) -> None:
        for line in self._held_back:
            print(line, file=sys.stderr)
        self._held_back.clear()


def say(line: str) -> None:
    """One line about what is going on, to stderr."""
    print(f"tritonembed-manager: {line}", file=sys.stderr, flush=True)


def _how(status: int | None) -> str:
    if status is None:
        return "still ending"
    return f"signal {-status}" if status < 0 else f"exit code {status}"
