"""A real Chromium without a window, driven through its DevTools protocol."""

import asyncio
import base64
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import aiohttp

PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
_PATIENCE_S = 60


def program() -> str | None:
    """The path of Chromium, or None."""
    return os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, PROGRAMS)), None)


class Tab:
    """One page. requests: the addresses it requested; messages: its lines on the console, such as errors."""

    def __init__(self, socket):
        self._socket = socket
        self._answers = {}
        self._loaded = asyncio.Event()
        self.requests = []
        self.messages = []

    async def open(self, address):
        self._loaded.clear()
        await self.do("Page.navigate", url=address)
        await asyncio.wait_for(self._loaded.wait(), _PATIENCE_S)

    async def do(self, method, **parameters):
        """The result of a command of the protocol."""
        number = len(self._answers) + 1
        answer = self._answers[number] = asyncio.get_running_loop().create_future()
        await self._socket.send_str(json.dumps({"id": number, "method": method, "params": parameters}))
        found = await asyncio.wait_for(answer, _PATIENCE_S)
        assert "error" not in found, found
        return found["result"]

    async def value(self, script):
        """The value of a JavaScript expression. A promise is awaited."""
        found = await self.do("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    async def until(self, script):
        """Waits until an expression is true. It is evaluated whenever the page has changed."""
        await self.value(
            f"""new Promise((done, failed) => {{
                const look = () => {{ if ({script}) {{ watch.disconnect(); done(); }} }};
                const watch = new MutationObserver(look);
                watch.observe(document, {{ subtree: true, childList: true, characterData: true, attributes: true }});
                setTimeout(() => failed(new Error("waited in vain: " + document.body.innerText)), 20000);
                look();
            }})"""
        )

    async def screen(self, width, height, *, dark=False):
        await self.do(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        await self.do("Emulation.setEmulatedMedia", features=[scheme])

    async def screenshot(self, path):
        found = await self.do("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        Path(path).write_bytes(base64.b64decode(found["data"]))

    async def receive(self):
        async for message in self._socket:
            found = json.loads(message.data)
            method, parameters = found.get("method"), found.get("params", {})
            if "id" in found:
                self._answers[found["id"]].set_result(found)
            elif method == "Page.loadEventFired":
                self._loaded.set()
            elif method == "Network.requestWillBeSent":
                self.requests.append(parameters["request"]["url"])
            elif method == "Runtime.exceptionThrown":
                self.messages.append(parameters["exceptionDetails"])
            elif method == "Log.entryAdded" and parameters["entry"]["level"] == "error":
                self.messages.append(parameters["entry"])


@contextmanager
def browser():
    """A fresh browser without data of this machine's user. Gives the address of its DevTools."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        process = subprocess.Popen(
            [
                program(),
                "--headless=new",
                "--no-sandbox",
                "--disable-gpu",
                "--disable-dev-shm-usage",
                "--no-first-run",
                "--disable-background-networking",
                "--no-proxy-server",
                "--remote-debugging-port=0",
                f"--user-data-dir={folder}",
                "about:blank",
            ],
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            yield f"http://127.0.0.1:{_port(process, Path(folder) / 'DevToolsActivePort')}"
        finally:
            # The browser's helper processes are in its session.
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@asynccontextmanager
async def new_tab(devtools):
    """A new tab of a browser, without requests or messages of another tab."""
    async with aiohttp.ClientSession() as session:
        async with session.put(f"{devtools}/json/new?about:blank") as answer:
            page = await answer.json()
        async with session.ws_connect(page["webSocketDebuggerUrl"], max_msg_size=0) as socket:
            tab = Tab(socket)
            receiving = asyncio.ensure_future(tab.receive())
            for domain in ("Page", "Network", "Runtime", "Log", "Accessibility"):
                await tab.do(f"{domain}.enable")
            yield tab
            receiving.cancel()
        await session.get(f"{devtools}/json/close/{page['id']}")


def _port(process, file):
    until = time.monotonic() + _PATIENCE_S
    while time.monotonic() < until:
        assert process.poll() is None, "the browser ended"
        # The file may be incomplete. It has two lines, the port and a path.
        if file.exists() and len(lines := file.read_text().splitlines()) > 1:
            return int(lines[0])
        time.sleep(0.02)
    raise AssertionError("the browser does not start")
