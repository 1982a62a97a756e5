"""Stop signals as something a selector can wait for."""

import os
import signal
from types import FrameType, TracebackType

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class SignalPipe:
    """While entered, SIGINT, SIGTERM and SIGHUP make `fd` readable instead of ending the process. Main thread only."""

    def __enter__(self) -> "SignalPipe":
        self.fd, self._write_fd = os.pipe()
        for fd in (self.fd, self._write_fd):
            os.set_blocking(fd, False)
        self._old_wakeup = signal.set_wakeup_fd(self._write_fd, warn_on_full_buffer=False)
        # What is ignored stays ignored: nohup, and a shell's background jobs.
        taken = [number for number in STOP_SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
        self._old = {number: signal.signal(number, _nothing) for number in taken}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._old_wakeup)
        os.close(self.fd)
        os.close(self._write_fd)

    def read(self) -> list[signal.Signals]:
        """The signals that have arrived since the last call, at least one when `fd` was readable."""
        return [signal.Signals(number) for number in os.read(self.fd, 256)]


def _nothing(number: int, frame: FrameType | None) -> None:
    """The pipe has the news."""
