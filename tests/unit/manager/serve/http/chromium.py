"""A real Chromium without a window, spoken to through its DevTools protocol."""

import asyncio
import base64
import json
import os
import shutil
import signal
import tempfile
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp

PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
_PATIENCE_S = 60


def program() -> str | None:
    """Where it is."""
    return os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, PROGRAMS)), None)


class Tab:
    """One page. requests: the addresses it asked for; messages: what it wrote to the console, errors above all."""

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
        """A command of the protocol; its result."""
        number = len(self._answers) + 1
        answer = self._answers[number] = asyncio.get_running_loop().create_future()
        await self._socket.send_str(json.dumps({"id": number, "method": method, "params": parameters}))
        found = await asyncio.wait_for(answer, _PATIENCE_S)
        assert "error" not in found, found
        return found["result"]

    async def value(self, script):
        """Of a JavaScript expression; a promise is awaited."""
        found = await self.do("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    async def until(self, script):
        """Until an expression is true: it is asked again whenever the page has changed."""
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

    async def hear(self):
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


@asynccontextmanager
async def chromium():
    """A tab of a fresh browser that knows nothing of this machine's user."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        process = await asyncio.create_subprocess_exec(
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
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
        try:
            port = await asyncio.wait_for(_port(process.stderr), _PATIENCE_S)
            async with aiohttp.ClientSession() as session:
                async with session.get(f"http://127.0.0.1:{port}/json/list") as answer:
                    [page] = [page for page in await answer.json() if page["type"] == "page"]
                async with session.ws_connect(page["webSocketDebuggerUrl"], max_msg_size=0) as socket:
                    tab = Tab(socket)
                    hearing = asyncio.ensure_future(tab.hear())
                    for domain in ("Page", "Network", "Runtime", "Log", "Accessibility"):
                        await tab.do(f"{domain}.enable")
                    yield tab
                    hearing.cancel()
        finally:
            # Its helpers are in its session.
            os.killpg(process.pid, signal.SIGKILL)
            await process.wait()


async def _port(lines):
    # DevTools listening on ws://127.0.0.1:40123/devtools/browser/…
    async for line in lines:
        if b"DevTools listening on " in line:
            return int(line.split(b":")[2].split(b"/")[0])
    raise AssertionError("the browser ended")
