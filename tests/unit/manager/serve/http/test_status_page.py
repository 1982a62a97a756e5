"""/health, /status, and the page at /, in a real Chromium."""

import math
import os
from itertools import product
from pathlib import Path

import pytest
from tests.unit.manager.serve.http.chromium import chromium, program
from tests.unit.manager.serve.http.conftest import MODEL, server_view

from tritonembed_manager.serve.model import ServerState

needs_chromium = pytest.mark.skipif(program() is None, reason="there is no Chromium (apt-get install chromium)")
FOLDER = os.environ.get("STATUS_PAGE_SCREENSHOTS")
"""Where to write screenshots; docs/status-page.png is the one 1000 wide and light."""
FILES = ("/", "/status.css", "/status.js", "/servers.js", "/lines.js", "/elements.js", "/words.js")
START = 1_800_000_000.0


def server(name, state="ready", **more):
    """A server of a snapshot."""
    figures = {"in_flight": 0, "work_bytes": 0, "requests": 0, "errors": 0, "ejections": 0, "rate": 0.0}
    figures |= {"p50_ms": None, "p99_ms": None, "replicas": 2, "restarts": 0, "why": "", "for_s": 754.2}
    return {"id": name, "state": state, "model": MODEL, **figures, **more}


def snapshot(at, *servers, draining=False, **totals):
    """As control/snapshot.py makes it."""
    ready = sum(one["state"] == "ready" for one in servers)
    figures = {"in_flight": 0, "waiting": 0, "requests": 0, "errors": 0, "ejections": 0, "rate": 0.0, "p50_ms": None}
    figures |= {"p99_ms": None, "retries": 0, "moves": 0, "replicas": 2 * ready, "restarts": 0}
    return {
        "type": "status",
        "version": "0.1.0",
        "model": MODEL,
        "policy": "least_loaded",
        "time": at,
        "uptime_s": 4000.0,
        "draining": draining,
        "workers": {"count": 2, "ready": 2, "restarts": 0},
        "totals": {**figures, "ready": ready, "servers": len(servers), **totals},
        "servers": list(servers),
    }


def busy(at):
    """A snapshot out of a life: one of three servers dies and comes back."""
    ago = START - at
    wave = 1 + 0.06 * math.sin(ago / 9) + 0.03 * math.sin(ago / 2.3)
    down = 90 < ago < 150
    share = (0.5, 0.5, 0.0) if down else (0.34, 0.33, 0.33)
    state = "unhealthy" if 130 < ago < 150 else "starting" if down else "ready"
    slow = 1.7 if down else 1.0
    servers = [
        server(
            f"server-{index}",
            "ready" if index < 2 else state,
            rate=1840 * part * wave,
            in_flight=round(42 * part * wave) + index % 2 * 3,
            p50_ms=6.1 * slow * wave + index if part else None,
            p99_ms=19.5 * slow * wave + index if part else None,
            restarts=int(index == 2 and ago < 150),
            for_s=3990.0 if index < 2 else 90.0 - ago,
        )
        for index, part in enumerate(share)
    ]
    together = {"rate": 1840 * wave, "in_flight": 42, "p50_ms": 6.6 * slow * wave, "p99_ms": 21 * slow * wave}
    return snapshot(at, *servers, requests=6_982_114, errors=0, retries=3, moves=58, restarts=1, **together)


async def test_health_is_that_of_this_moment(serving, dispatcher):
    assert (await serving.get("/health")).status == 200
    dispatcher.views = [server_view("a", ServerState.UNHEALTHY)]
    answer = await serving.get("/health")
    assert (answer.status, answer.body) == (503, {"status": "no server is ready"})
    dispatcher.views = [server_view("a")]
    serving.is_serving = False
    answer = await serving.get("/health")
    assert answer.status == 503
    assert "draining" in answer.body["status"]
    serving.is_serving = True
    serving.status = snapshot(START, draining=True)
    assert (await serving.get("/health")).status == 503


async def test_status_is_the_parents_snapshot(serving):
    assert (await serving.get("/status")).status == 503
    serving.status = busy(START)
    answer = await serving.get("/status")
    assert (answer.status, answer.body) == (200, busy(START))


async def test_the_page_allows_nothing_from_outside(serving):
    for path in FILES:
        answer = await serving.get(path)
        assert answer.status == 200
        assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
        assert b"http://" not in answer.raw.replace(b"http://www.w3.org/2000/svg", b"")
        assert b"https://" not in answer.raw


@pytest.fixture
async def tab():
    async with chromium() as tab:
        yield tab
        assert not tab.messages


def text(selector):
    return f"document.querySelector({selector!r}).textContent"


@needs_chromium
async def test_it_shows_the_servers_and_follows_them_live(serving, tab):
    serving.status = snapshot(
        START,
        server("a", rate=12.34, in_flight=3, p50_ms=4.56, p99_ms=1234.5),
        server("b", "unhealthy", why="<b>no answer</b>", restarts=2, for_s=5),
        rate=12.34,
        requests=1234567,
        retries=1,
        moves=2,
    )
    await tab.screen(1200, 900)
    await tab.open(serving.base)
    await tab.until("document.querySelectorAll('#servers tbody tr').length === 2")
    assert await tab.value("document.title") == "1/2 ready – tritonembed"
    assert await tab.value(text("#banner")) == "1 of 2 servers ready."
    assert MODEL in await tab.value(text("#about"))
    assert await tab.value(text("[data-total=requests]")) == "1,234,567"
    assert await tab.value(text("[data-total=again]")) == "3"
    rows = await tab.value("[...document.querySelectorAll('#servers tbody tr')].map((row) => row.innerText)")
    assert rows[0].split() == ["a", "●", "ready", "for", "12", "min", "2", "3", "12.3/s", "4.6", "ms", "1.23", "s", "0"]
    assert "▲ unhealthy\n<b>no answer</b>, for 5 s" in rows[1]

    serving.status = snapshot(START + 1, server("b"), server("c"))
    await tab.until("document.title.startsWith('2/2')")
    assert await tab.value("[...document.querySelectorAll('#servers tbody th')].map((cell) => cell.innerText)") == [
        "b",
        "c",
    ]
    assert await tab.value("document.querySelector('#banner').className") == "good"
    serving.status = snapshot(START + 2, server("b"), draining=True)
    await tab.until(f"{text('#banner')}.startsWith('Draining')")
    serving.status = snapshot(START + 3)
    await tab.until("!document.querySelector('#none').hidden")


@needs_chromium
async def test_it_says_when_the_manager_does_not_answer_and_recovers(serving, tab):
    await tab.open(serving.base)
    await tab.until(f"{text('#banner')} === 'The manager does not answer.'")
    serving.status = snapshot(START, server("a"))
    await tab.until("document.querySelector('#banner').className === 'good'")
    serving.status = {}
    await tab.until(f"{text('#banner')} === 'The manager does not answer: what follows is old.'")
    serving.status = snapshot(START + 9, server("a"))
    await tab.until("document.querySelector('#banner').className === 'good'")
    tab.messages.clear()  # the 503 answers


@needs_chromium
async def test_a_page_just_opened_has_the_last_minutes_and_fits_every_screen(serving, tab):
    for second in range(300):
        serving.status = busy(START - 300 + second)
        serving.history.look()
    serving.status = busy(START)
    await tab.screen(1100, 700)
    await tab.open(serving.base)
    await tab.until("document.querySelectorAll('#servers tbody tr').length === 3")
    for name, lines in (("rate", 1), ("latency", 2)):
        sizes = await tab.value(
            f"[...document.querySelectorAll('[data-chart={name}] path')].map((path) => path.getAttribute('d').length)"
        )
        assert len(sizes) == lines
        assert min(sizes) > 1000
    for width, dark in product((1000, 700, 320), (False, True)):
        await tab.screen(width, 700, dark=dark)
        assert await tab.value("document.documentElement.scrollWidth") <= width
        assert await tab.value(f"({WORST_CONTRAST})()") >= 4.5
        if FOLDER:
            await tab.screenshot(Path(FOLDER) / f"status-{width}-{'dark' if dark else 'light'}.png")
    asked = {address.removeprefix(serving.base) for address in tab.requests}
    assert asked - {"data:,"} == {*FILES, "/status", "/status/history"}


@needs_chromium
async def test_it_is_told_apart_without_eyes(serving, tab):
    serving.status = busy(START)
    await tab.open(serving.base)
    await tab.until("document.querySelectorAll('#servers tbody tr').length === 3")
    for width in (1100, 360):
        await tab.screen(width, 700)
        nodes = (await tab.do("Accessibility.getFullAXTree"))["nodes"]
        found = {
            (node["role"]["value"], node.get("name", {}).get("value", "")) for node in nodes if not node["ignored"]
        }
        assert ("heading", "Servers") in found
        assert ("columnheader", "99th percentile") in found
        assert ("rowheader", "server-0") in found
        assert {role for role, _ in found} >= {"main", "status", "table", "region"}
        pictures = [name for role, name in found if role == "image"]
        assert len(pictures) == 2
        assert all("over the last five minutes: now" in name for name in pictures)


WORST_CONTRAST = """() => {
  const numbers = (color) => color.match(/[\\d.]+/g).map(Number);
  const luminance = ([r, g, b]) => {
    const [x, y, z] = [r, g, b].map((c) => (c / 255 <= 0.03928 ? c / 255 / 12.92 : ((c / 255 + 0.055) / 1.055) ** 2.4));
    return 0.2126 * x + 0.7152 * y + 0.0722 * z;
  };
  const behind = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const color = numbers(getComputedStyle(at).backgroundColor);
      if (color.length === 3 || color[3] > 0) return color;
    }
    return [255, 255, 255];
  };
  let worst = 99;
  for (const element of document.querySelectorAll("body *")) {
    if (![...element.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim())) continue;
    const [a, b] = [luminance(numbers(getComputedStyle(element).color)), luminance(behind(element))];
    worst = Math.min(worst, (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05));
  }
  return worst;
}"""
