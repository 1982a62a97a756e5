"""Attackers: each sends one attack after the other and compares its outcome with the allowed ones."""

import asyncio
import random
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import grpc.aio
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from tritonembed_perf.chaos.attack import CANARY, FROM, Attack, AttackTarget
from tritonembed_perf.chaos.grpc_attacks import NOT_ANSWERED, grpc_attacks
from tritonembed_perf.chaos.http2_attacks import http2_attacks
from tritonembed_perf.chaos.http_attacks import http_attacks
from tritonembed_perf.chaos.ledger import BROKEN, HANG, SERVER, WORKER, CampaignLedger, Harms
from tritonembed_perf.chaos.socket_attacks import socket_attacks

REST_S = (0.0, 0.1)
_REMEMBERED = 12
_REPORTED = 5
"""Findings that are written down per kind of attack; all are counted."""
_OPTIONS = [
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_http_proxy", 0),
    ("grpc.max_reconnect_backoff_ms", 500),
    ("grpc.max_metadata_size", 1 << 20),
]


def all_attacks() -> list[Attack]:
    return [*grpc_attacks(), *http_attacks(), *socket_attacks(), *http2_attacks()]


@asynccontextmanager
async def target_of(host: str, grpc_port: int, http_port: int, model: str) -> Any:
    """The service as the target of one attacker, who gets connections of its own."""
    timeout = aiohttp.ClientTimeout(total=60)
    async with (
        grpc.aio.insecure_channel(f"{host}:{grpc_port}", _OPTIONS) as channel,
        aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(local_addr=FROM), timeout=timeout, trust_env=False
        ) as session,
    ):
        yield AttackTarget(host, grpc_port, http_port, channel, session, model)


class Attackers:
    """Sends attacks of the given kinds. What an attacker sends depends on its seed alone."""

    def __init__(self, attacks: Sequence[Attack], ledger: CampaignLedger, harms: Harms) -> None:
        self._attacks = list(attacks)
        self._ledger = ledger
        self._harms = harms
        self._recent: deque[str] = deque(maxlen=_REMEMBERED)
        self._reported: Counter[str] = Counter()
        self._sent: set[str] = set()

    @property
    def all_sent(self) -> bool:
        """Whether every kind of attack has ended at least once."""
        return len(self._sent) == len(self._attacks)

    def recent(self) -> str:
        """Names of the attacks that began last."""
        return ", ".join(dict.fromkeys(self._recent)) or "none"

    async def run(self, target: AttackTarget, seed: int, going: Callable[[], bool]) -> None:
        """Run one attacker until `going` returns false: every kind once in random order, then random kinds."""
        rng = random.Random(seed)
        turn = rng.sample(self._attacks, len(self._attacks))
        weights = [attack.often for attack in self._attacks]
        while going() and self._attacks:
            attack = turn.pop() if turn else rng.choices(self._attacks, weights)[0]
            await self._send(attack, target, rng.getrandbits(48))
            await asyncio.sleep(rng.uniform(*REST_S))

    async def _send(self, attack: Attack, target: AttackTarget, seed: int) -> None:
        self._recent.append(attack.name)
        began = time.monotonic()
        try:
            outcome, message = await asyncio.wait_for(attack.send(target, random.Random(seed)), attack.limit_s)
        except (asyncio.TimeoutError, TimeoutError):
            outcome, message = HANG, ""
        except DecodeError as error:
            outcome, message = "an answer that nobody can read", str(error)
        ended = time.monotonic()
        self._sent.add(attack.name)
        self._ledger.attack(attack.name, outcome)
        if CANARY in message:
            self._unexpected(attack, seed, "an error that holds a request's text", "")
        if outcome not in attack.allowed and not self._explained(outcome, began, ended):
            self._unexpected(attack, seed, f"{outcome} after {ended - began:.1f} s", message)

    def _explained(self, outcome: str, began: float, ended: float) -> bool:
        # A harmed server explains a late or unavailable answer. Broken connections come from workers.
        if outcome in ("UNAVAILABLE", "503", "DEADLINE_EXCEEDED", "504") and self._harms.during(SERVER, began, ended):
            return True
        if outcome in (*BROKEN, "silent", NOT_ANSWERED) and self._harms.outage_s(began, ended):
            return True
        return outcome in BROKEN and bool(self._harms.during(WORKER, began, ended))

    def _unexpected(self, attack: Attack, seed: int, what: str, message: str) -> None:
        self._ledger.unexpected[attack.name] += 1
        self._reported[attack.name] += 1
        if self._reported[attack.name] <= _REPORTED:
            said = " ".join(message.split())[:160]
            self._ledger.finding(f"attack {attack.name!r} (--attack-seed {seed}): {what}{f': {said}' if said else ''}")
