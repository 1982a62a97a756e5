"""A worker that only exchanges lines with its parent. It appends received lines to the file FAKE_WORKER.

A word in the file FAKE_WORKER.do changes what it does:
die: it exits with 3 when it receives the next line. deaf: it ignores the drain. cut: it cuts two requests at the end.
crash: it exits with 7 on the drain. silent: it sends no more signs of life. compute: the same, and it uses a CPU.
fail: it can't listen.
"""

import json
import os
import signal
import socket
import sys
import threading
import time
from pathlib import Path

arguments = dict(zip(sys.argv[1::2], sys.argv[2::2], strict=True))
parent = socket.socket(fileno=int(arguments["--control-fd"]))
journal = Path(os.environ.get("FAKE_WORKER", os.devnull))
orders = journal.with_suffix(".do")
signal.signal(signal.SIGINT, signal.SIG_IGN)


sending = threading.Lock()


def send(**line):
    with sending:
        parent.sendall(json.dumps(line).encode() + b"\n")


def order():
    return orders.read_text().strip() if orders.exists() else ""


def beat():
    while (now := order()) not in ("silent", "compute"):
        try:
            send(type="alive")
        except OSError:
            return
        time.sleep(0.1)
    orders.unlink(missing_ok=True)
    while now == "compute":
        pass


threading.Thread(target=beat, daemon=True).start()

for text in parent.makefile():
    line = json.loads(text)
    with journal.open("a") as file:
        file.write(text)
    given = order()
    if line["type"] == "config":
        send(**({"type": "failed", "why": "--port: taken"} if given == "fail" else {"type": "ready"}))
    elif given == "die":
        orders.unlink()
        sys.exit(3)
    elif line["type"] == "drain" and given != "deaf":
        if given == "cut":
            send(type="cut", requests=2)
        sys.exit({"cut": 3, "crash": 7}.get(given, 0))
