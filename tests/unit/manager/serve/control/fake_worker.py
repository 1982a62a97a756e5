"""A worker that only speaks with its parent. FAKE_WORKER names a file: what it hears is appended there.

A line "die" in the file FAKE_WORKER.do makes it exit with 3 at the next thing it hears, "deaf" ignore the drain,
"cut" cut two requests in the end, "crash" end with 7 when it is to drain.
"""

import json
import os
import signal
import socket
import sys
from pathlib import Path

arguments = dict(zip(sys.argv[1::2], sys.argv[2::2], strict=True))
parent = socket.socket(fileno=int(arguments["--control-fd"]))
journal = Path(os.environ.get("FAKE_WORKER", os.devnull))
orders = journal.with_suffix(".do")
signal.signal(signal.SIGINT, signal.SIG_IGN)


def say(**line):
    parent.sendall(json.dumps(line).encode() + b"\n")


for text in parent.makefile():
    line = json.loads(text)
    with journal.open("a") as file:
        file.write(text)
    order = orders.read_text().strip() if orders.exists() else ""
    if line["type"] == "config":
        say(**({"type": "failed", "why": "--port: taken"} if order == "fail" else {"type": "ready"}))
    elif order == "die":
        orders.unlink()
        sys.exit(3)
    elif line["type"] == "drain" and order != "deaf":
        if order == "cut":
            say(type="cut", requests=2)
        sys.exit({"cut": 3, "crash": 7}.get(order, 0))
