"""A peer for tests: a small OpenAI server in its own process, and a program in this process. Both can be faulty."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from tritonembed_perf.compare.contest import Material, Materials
from tritonembed_perf.compare.peer import DEFAULTS, Peer
from tritonembed_perf.compare.results import Trial
from tritonembed_perf.loadgen.checks import AnswerCheck, RightVectors
from tritonembed_perf.loadgen.protocols import OpenAIProtocol
from tritonembed_perf.loadgen.requests import PooledRequest

VECTOR = """
def vector(text):
    numbers = [byte + 1 for byte in hashlib.sha256(text.encode()).digest()[:4]]
    norm = sum(number * number for number in numbers) ** 0.5
    return [number / norm for number in numbers]
"""

SERVER = (
    """
import hashlib, json, os, signal, subprocess, sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
"""
    + VECTOR
    + """
port, fault = int(sys.argv[1]), sys.argv[2]
if fault == "ends":
    sys.exit("ValueError: /home/somebody/model has no weights")
if fault == "leaves a child":
    child = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(1, flush=True); signal.pause()"
    started = subprocess.Popen([sys.executable, "-c", child], stdout=subprocess.PIPE)
    started.stdout.readline()
    open(sys.argv[3], "w").write(str(started.pid))
if fault == "leaves shared memory":
    # As vLLM does: what removes it is python's resource tracker, once all that know of it have ended.
    from multiprocessing.shared_memory import SharedMemory

    block = SharedMemory(create=True, size=1024)
    open(sys.argv[3], "w").write(block.name)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if not os.fork():
        signal.pause()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
served = 0


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = 65536

    def do_POST(self):
        global served
        served += 1
        if fault == "interrupts" and served == 5:
            os.kill(os.getppid(), signal.SIGINT)
        texts = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["input"]
        rows = [vector(text) for text in texts]
        if fault == "out of order":
            rows.reverse()
        data = [{"index": i, "embedding": row} for i, row in enumerate(rows)]
        body = json.dumps({"data": data}).encode()
        self.send_response(500 if fault == "refuses" and len(texts) > 1 else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""
)

PROGRAM = (
    """
import hashlib, json, sys
import numpy
"""
    + VECTOR
    + """
job = json.load(open(sys.argv[-1]))
if sys.argv[1] == "fails":
    sys.exit("RuntimeError: out of memory")
rows = [vector(text) for text in job["texts"]]
numpy.save(job["vectors"], numpy.array(rows[::-1] if sys.argv[1] == "out of order" else rows, numpy.float32))
print("something else")
print(json.dumps({"calls": 4, "seconds": 2.0, "latencies": [0.4, 0.5, 0.5, 0.6]}))
"""
)

TRIAL = Trial(5, 2, 4)


def vector(text: str) -> list[float]:
    scope: dict[str, Any] = {"hashlib": hashlib}
    exec(VECTOR, scope)
    found: list[float] = scope["vector"](text)
    return found


class FewTexts(Materials):
    """Two requests of two sentences of five tokens, and their right vectors."""

    def __init__(self) -> None:
        pass

    def of(self, trial: Trial) -> Material:
        requests = [PooledRequest(("one two", "three four"), 10), PooledRequest(("five six", "seven"), 10)]
        vectors = [np.array([vector(text) for text in request.texts], np.float32) for request in requests]
        return Material(requests, {n: RightVectors(np.arange(2), rows) for n, rows in enumerate(vectors)})

    def check(self, trial: Trial) -> AnswerCheck:
        return AnswerCheck(4, True, 0.999, self.of(trial).references)


class FakeServer(Peer):
    """fault: the name of the server's fault."""

    def __init__(self, script: Path, fault: str = "nothing", *more: str) -> None:
        script.write_text(SERVER)
        command = ("{python}", str(script), "{port}", fault, *more)
        super().__init__(
            "fake", command, (DEFAULTS,), (DEFAULTS,), lambda address, _: OpenAIProtocol(address, "fake", "float")
        )
