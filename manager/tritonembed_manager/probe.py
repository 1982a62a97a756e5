"""Is the server ready? It is when an inference through `embedding` succeeded.

Triton's own readiness says less: it stays true when a python stub has died.
"""

import contextlib
import os
import socket
import threading
import time

_TEXT = "ready?"
_RETRY_S = 0.1
_AFTER_AN_ERROR_S = 1.0
_REFUSALS = 5
"""A loaded model that refuses one good sentence so often will not get better."""
_ATTEMPT_S = 60.0
_QUESTION_S = 1.0
_NOT_AN_ANSWER = ("StatusCode.UNAVAILABLE", "StatusCode.DEADLINE_EXCEEDED", "StatusCode.CANCELLED")
_MICROSECONDS = 1_000_000


class ReadinessProbe:
    """Infers, in a thread of its own, until it works, or until the server has refused several times in a row.

    `fd` becomes readable then; `refused` tells the two apart. `error` says why it does not work yet.
    """

    def __init__(self, host: str, port: int) -> None:
        self._address = (host, port)
        self._stopping = threading.Event()
        self.fd, self._ready_fd = os.pipe()
        self.error = "it does not listen yet"
        self.refused = False
        self._refusals = 0
        self._thread = threading.Thread(target=self._run, name="readiness", daemon=True)

    def start(self) -> None:
        """Begin to ask."""
        self._thread.start()

    def stop(self) -> None:
        """Stop asking; an inference on its way ends with its server."""
        self._stopping.set()
        os.close(self.fd)

    def _run(self) -> None:
        with open(self._ready_fd, "wb", buffering=0) as ready, contextlib.suppress(BrokenPipeError):
            while not self._stopping.wait(_RETRY_S):
                if self._listens() and (self._answers() or self.refused):
                    ready.write(b"1")
                    # Kept open: the end of the pipe would look like the news once more.
                    self._stopping.wait()

    def _answers(self) -> bool:
        try:
            infer(*self._address)
        except Exception as error:
            # Whatever it is, it is asked again; the last reason is what is reported.
            self.error = _one_line(error)
            self._refusals = self._refusals + 1 if _is_refusal(error) else 0
            self.refused = self._refusals >= _REFUSALS
            self._stopping.wait(_AFTER_AN_ERROR_S)
            return False
        return True

    def _listens(self) -> bool:
        try:
            socket.create_connection(self._address, timeout=1).close()
        except OSError:
            return False
        return True


def infer(host: str, port: int, *, timeout: float = _ATTEMPT_S) -> float:
    """One sentence through `embedding`; returns the seconds it took. Raises what tritonclient raises."""
    import numpy as np
    from tritonclient.grpc import InferenceServerClient, InferInput

    text = InferInput("text", [1, 1], "BYTES")
    text.set_data_from_numpy(np.array([[_TEXT.encode()]], dtype=np.object_))
    client = InferenceServerClient(_authority(host, port))
    try:
        began = time.monotonic()
        answer = client.infer("embedding", [text], client_timeout=timeout, timeout=round(timeout * _MICROSECONDS))
        vector = answer.as_numpy("embedding")
        if vector is None or not vector.size or not len(vector.flat[0]):
            raise RuntimeError("the server answered without a vector")
        return time.monotonic() - began
    finally:
        client.close()


def is_short_of_stubs(host: str, port: int, model: str, running: int) -> bool:
    """Does Triton call a model ready of which fewer instances run than its configuration asks for?

    running: how many stubs of it are alive. A server that does not answer is taken to be short of them.
    """
    from tritonclient.grpc import InferenceServerClient
    from tritonclient.utils import InferenceServerException

    client = InferenceServerClient(_authority(host, port))
    try:
        if not client.is_model_ready(model, client_timeout=_QUESTION_S):
            return False
        groups = client.get_model_config(model, client_timeout=_QUESTION_S).config.instance_group
        return bool(running < sum(group.count * max(len(group.gpus), 1) for group in groups))
    except InferenceServerException:
        return True
    finally:
        client.close()


def _authority(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _is_refusal(error: Exception) -> bool:
    """Whether the server answered with an error, rather than not (yet) at all."""
    status = getattr(error, "status", lambda: None)()
    return status is not None and status not in _NOT_AN_ANSWER


def _one_line(error: Exception) -> str:
    message = getattr(error, "message", lambda: str(error))()
    return str(message).splitlines()[0] if str(message) else type(error).__name__
