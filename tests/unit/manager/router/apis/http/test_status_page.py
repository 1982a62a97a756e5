"""/health, /status, and the page at /, in a real Chromium."""

import math
import os
from itertools import product
from pathlib import Path

import pytest
from tests.unit.manager.router.apis.http.chromium import browser, new_tab, program
from tests.unit.manager.router.apis.http.conftest import MODEL, server_view

from tritonembed_manager.router.interfaces import ServerState

needs_chromium = pytest.mark.skipif(program() is None, reason="there is no Chromium (apt-get install chromium)")
FOLDER = os.environ.get("STATUS_PAGE_SCREENSHOTS")
"""A folder for screenshots. docs/status-page.png is the light screenshot with a width of 1280."""
FILES = ("/", "/status.css", "/status.js", "/banner.js", "/servers.js", "/lines.js", "/elements.js", "/words.js")
START = 1_800_000_000.0


def server(name, state="ready", **more):
    """A snapshot's server."""
    figures = {"in_flight": 0, "work_bytes": 0, "requests": 0, "errors": 0, "ejections": 0, "rate": 0.0, "tokens": 0}
    figures |= {"p50_ms": None, "p99_ms": None, "replicas": 2, "restarts": 0, "why": "", "for_s": 754.2}
    figures |= {"token_rate": 0.0, "client_errors": {}, "service_errors": {}}
    return {"id": name, "state": state, "model": MODEL, **figures, **more}


def snapshot(at, *servers, draining=False, **totals):
    """A snapshot like those of control/snapshot.py."""
    ready = sum(one["state"] == "ready" for one in servers)
    figures = {"in_flight": 0, "waiting": 0, "requests": 0, "errors": 0, "ejections": 0, "rate": 0.0, "p50_ms": None}
    figures |= {"p99_ms": None, "retries": 0, "moves": 0, "replicas": 2 * ready, "restarts": 0}
    figures |= {"tokens": 0, "token_rate": 0.0, "client_errors": {}, "service_errors": {}}
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
    """A realistic snapshot: one of four servers has died and does not come back."""
    ago = START - at
    wave = 1 + 0.06 * math.sin(ago / 9) + 0.03 * math.sin(ago / 2.3)
    down = ago < 150
    shares = (0.34, 0.33, 0.33, 0.0) if down else (0.25, 0.25, 0.25, 0.25)
    slow = 7.0 if 120 < ago < 150 else 1.3 if down else 1.0
    servers = [
        server(
            f"server-{index}",
            "ready" if part else "starting" if ago > 60 else "failed",
            rate=1840 * part * wave,
            token_rate=1840 * 212 * part * wave,
            in_flight=round(42 * part * wave) + index % 2 * 3 if part else 0,
            p50_ms=6.1 * slow * wave + index if part else None,
            p99_ms=19.5 * slow * wave + index if part else None,
            restarts=0 if part else 5,
            for_s=3990.0 if part else 150.0 - ago if ago > 60 else 60.0 - ago,
            service_errors={} if part else {"ABORTED": 58, "UNAVAILABLE": 3},
            why="" if part else "starts again" if ago > 60 else DIED,
        )
        for index, part in enumerate(shares)
    ]
    together = {"rate": 1840 * wave, "in_flight": 42, "p50_ms": 6.6 * slow * wave, "p99_ms": 21 * slow * wave}
    together |= {
        "client_errors": {"INVALID_ARGUMENT": 214, "CANCELLED": 31},
        "service_errors": {"DEADLINE_EXCEEDED": 12},
    }
    together |= {"token_rate": 1840 * 212 * wave, "tokens": 1_480_208_168, "restarts": 5}
    return snapshot(at, *servers, requests=6_982_114, errors=226, retries=3, moves=58, **together)


DIED = "its process ended with exit code 1 while it loaded the model: restarted 5 times in 10 minutes, left down"
HOSTILE = "<img src=x onerror=alert(1)>\x1b[31mred\x1b[0m\r\nnext\x00\x9b\u202etxt " + "long " * 400


async def test_health_is_up_to_date(serving, dispatcher):
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


async def test_the_page_loads_nothing_from_outside(serving):
    for path in FILES:
        answer = await serving.get(path)
        assert answer.status == 200
        assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
        assert b"http://" not in answer.raw.replace(b"http://www.w3.org/2000/svg", b"")
        assert b"https://" not in answer.raw


@pytest.fixture(scope="module")
def devtools():
    with browser() as address:
        yield address


@pytest.fixture
async def tab(devtools):
    async with new_tab(devtools) as tab:
        yield tab
        assert not tab.messages


def text(selector):
    return f"document.querySelector({selector!r}).textContent"


@needs_chromium
async def test_the_page_shows_the_servers_and_follows_them_live(serving, tab):
    serving.status = snapshot(
        START,
        server(
            "a", rate=12.34, token_rate=1234.5, in_flight=3, p50_ms=4.56, p99_ms=1234.5, service_errors={"INTERNAL": 4}
        ),
        server("b", "unhealthy", why="<b>no answer</b>", restarts=2, for_s=5),
        rate=12.34,
        token_rate=1234.5,
        requests=1234567,
        retries=1,
        moves=2,
    )
    await tab.screen(1200, 900)
    await tab.open(serving.base)
    await tab.until("document.querySelectorAll('#servers tbody').length === 2")
    assert await tab.value("document.title") == "1/2 ready – tritonembed"
    assert MODEL in await tab.value(text("#about"))
    assert await tab.value(text("[data-total=requests]")) == "1,234,567"
    assert await tab.value(text("[data-total=token_rate]")) == "1,235"
    assert await tab.value(text("[data-total=again]")) == "3"
    rows = await tab.value("[...document.querySelectorAll('#servers tbody')].map((row) => row.innerText)")
    figures = ["2", "3", "12.3", "1,235", "4.6", "ms", "1.23", "s", "4", "0"]
    assert rows[0].split() == ["a", "●", "ready", "for", "12", "min", *figures]
    assert "▲ unhealthy\nfor 5 s" in rows[1]
    assert rows[1].endswith("\n<b>no answer</b>")

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
async def test_the_banner_names_the_servers_that_are_not_ready_and_why(serving, tab):
    serving.status = snapshot(
        START,
        server("a"),
        server("b", "starting"),
        server("c", "unhealthy", why="no answer within 10 s"),
        server("d", "failed", why="exit code 1.", for_s=5),
        server("e", "refused", why=HOSTILE),
    )
    await tab.open(serving.base)
    await tab.until("document.querySelector('#banner').className === 'bad'")
    banner = await tab.value(text("#banner"))
    assert banner.startswith("1 of 5 servers ready. d is failed: exit code 1. e is refused: <img src=x")
    assert banner.endswith("c is unhealthy: no answer within 10 s. And 1 more.")
    assert "onerror=alert(1)>red next txt long" in banner
    assert len(banner) < 350
    reason = await tab.value(text("#servers tbody:last-of-type .reason"))
    assert len(reason) == 600
    assert not {"\x1b", "\x00", "\x9b", "\u202e", "\n"} & set(banner + reason)
    serving.status = snapshot(START + 1, server("a"), server("d", "failed", why="exit code 1.", for_s=6))
    await tab.until(f"{text('#banner')} === '1 of 2 servers ready. d is failed: exit code 1.'")


@needs_chromium
async def test_errors_are_shown_by_code_and_separate_from_those_of_clients(serving, tab):
    clients, services = {"CANCELLED": 3, "INVALID_ARGUMENT": 1200}, {"UNAVAILABLE": 4, "RESOURCE_EXHAUSTED": 17}
    serving.status = snapshot(START, server("a"), client_errors=clients, service_errors=services)
    await tab.open(serving.base)
    await tab.until(f"{text('[data-total=service_errors]')} === '21'")
    assert await tab.value(text("[data-codes=service_errors]")) == "RESOURCE_EXHAUSTED 17, UNAVAILABLE 4"
    assert await tab.value(text("[data-total=client_errors]")) == "1,203"
    assert await tab.value(text("[data-codes=client_errors]")) == "INVALID_ARGUMENT 1,200, CANCELLED 3"


@needs_chromium
async def test_latency_has_a_logarithmic_scale(serving, tab):
    for at, (median, slow) in enumerate([(2.0, 20.0), (20.0, 200.0), (200.0, 2000.0)]):
        serving.status = snapshot(START + at, server("a", p50_ms=median, p99_ms=slow), p50_ms=median, p99_ms=slow)
        serving.history.look()
    await tab.open(serving.base)
    await tab.until("document.querySelector('[data-chart=latency] path').getAttribute('d')")
    marks = "[...document.querySelectorAll('[data-chart=latency] .marks span')].map((mark) => mark.textContent)"
    assert await tab.value(marks) == ["1 ms", "10 ms", "100 ms", "1 s", "10 s"]
    lines = await tab.value(
        "[...document.querySelectorAll('[data-chart=latency] path')].map((path) => path.getAttribute('d'))"
    )
    # The scale has four decades, so every factor of ten is a quarter of its height.
    heights = [[float(place.split()[1]) for place in line[1:].split("L")] for line in lines]
    assert heights == [[92.47, 67.47, 42.47], [67.47, 42.47, 17.47]]


@needs_chromium
async def test_the_page_reports_that_the_manager_does_not_answer_and_recovers(serving, tab):
    await tab.open(serving.base)
    await tab.until(f"{text('#banner')} === 'The manager has just started: there is no status yet.'")
    serving.status = snapshot(START, server("a"))
    await tab.until("document.querySelector('#banner').className === 'good'")
    serving.status = {}
    await tab.until(f"/has not answered since ..:..:..: what follows is old/.test({text('#banner')})")
    assert await tab.value("document.title") == "no answer – tritonembed"
    assert await tab.value("document.body.className") == "old"
    serving.status = snapshot(START + 9, server("a"))
    await tab.until("document.querySelector('#banner').className === 'good'")
    assert await tab.value("document.title + document.body.className") == "1/1 ready – tritonembed"
    tab.messages.clear()  # the 503 responses


@needs_chromium
async def test_warnings_are_shown_and_figures_of_a_hung_parent_are_marked_as_old(serving, tab):
    serving.status = snapshot(START, server("a")) | {"warnings": ["there is no <reference>"]}
    await tab.open(serving.base)
    await tab.until("document.querySelector('#warnings li')?.textContent === 'there is no <reference>'")
    assert await tab.value("document.querySelector('#banner').className + document.body.className") == "good"
    serving.status |= {"age_s": 7.0, "warnings": ["these figures are 7 s old"]}
    await tab.until("document.body.className === 'old'")
    assert await tab.value(text("#banner")) == "The manager's parent process does not run: what follows is old."
    assert await tab.value(text("#warnings")) == "these figures are 7 s old"


@needs_chromium
async def test_a_page_just_opened_has_the_last_minutes_and_fits_every_screen(serving, tab):
    for second in range(300):
        serving.status = busy(START - 300 + second)
        serving.history.look()
    serving.status = busy(START)
    await tab.screen(1100, 700)
    await tab.open(serving.base)
    await tab.until("document.querySelectorAll('#servers tbody').length === 4")
    for name, lines in (("rate", 1), ("token_rate", 1), ("latency", 2)):
        sizes = await tab.value(
            f"[...document.querySelectorAll('[data-chart={name}] path')].map((path) => path.getAttribute('d').length)"
        )
        assert len(sizes) == lines
        assert min(sizes) > 1000
    for width, dark in product((2560, 1280, 1160, 1000, 700, 320), (False, True)):
        await tab.screen(width, 700, dark=dark)
        assert await tab.value("document.documentElement.scrollWidth") <= width
        assert await tab.value(f"({WORST_CONTRAST})()") >= 4.5
        assert await tab.value(f"({BROKEN_WORDS})()") == []
        if FOLDER:
            await tab.screenshot(Path(FOLDER) / f"status-{width}-{'dark' if dark else 'light'}.png")
    asked = {address.removeprefix(serving.base) for address in tab.requests}
    assert asked - {"data:,"} == {*FILES, "/status", "/status/history"}


LONG_NAMES = (
    "server-0",
    "[2001:db8:85a3:1319:8a2e:370:7344:1234]:8001",
    "embeddings-1.a-namespace.svc.cluster.example:8001",
    ".".join(["x" * 63] * 4),
)


@needs_chromium
async def test_no_word_is_broken_whatever_the_servers_names_and_reasons(serving, tab):
    figures = {"rate": 123456.7, "token_rate": 12345678.9, "in_flight": 4096, "p50_ms": 123.4, "p99_ms": 12345.6}
    figures |= {
        "replicas": 128,
        "restarts": 12345,
        "for_s": 86_000.0,
        "service_errors": {"RESOURCE_EXHAUSTED": 1_234_567},
    }
    states = ("failed", "unhealthy", "ready", "refused")
    known = [server(name, state, why=DIED, **figures) for name, state in zip(LONG_NAMES, states, strict=True)]
    many = [server(f"10.0.{index}.17:8001", **figures) for index in range(100)]
    serving.status = snapshot(START, *known, *many, requests=10**12, rate=123456.7, token_rate=123456789.1)
    await tab.open(serving.base)
    await tab.until("document.querySelectorAll('#servers tbody').length === 104")
    for width in (320, 1160, 1280, 2560):
        await tab.screen(width, 900)
        assert await tab.value("document.documentElement.scrollWidth") <= width
        assert await tab.value(f"({BROKEN_WORDS})()") == []
        if FOLDER:
            await tab.screenshot(Path(FOLDER) / f"names-{width}.png")


@needs_chromium
async def test_a_screen_reader_gets_the_whole_page(serving, tab):
    serving.status = busy(START)
    await tab.open(serving.base)
    await tab.until("document.querySelectorAll('#servers tbody').length === 4")
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
        assert len(pictures) == 3
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

BROKEN_WORDS = """() => {
  const found = [];
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node = texts.nextNode(); node; node = texts.nextNode()) {
    for (const word of node.data.matchAll(/[^\\s-]+/g)) {
      const range = new Range();
      range.setStart(node, word.index);
      range.setEnd(node, word.index + word[0].length);
      if (word[0].length > 40) continue;
      if (new Set([...range.getClientRects()].map((part) => Math.round(part.top))).size > 1) found.push(word[0]);
    }
  }
  return found;
}"""
"""Words, or their parts between hyphens, that are on more than one line, except those longer than a line."""
