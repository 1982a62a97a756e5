"""The tenants in the parent process: the file of --tenants, and the lines with the tenants' use.

    tenants:
      - name: search
        keys:
          - sha256: 5e884898da28047151d0e56f8dc6292773603d0d6aabbdd62a11ef721d1542d8
            expires: 2027-06-30
        tokens_per_minute: 1000000

The file is YAML. It is read repeatedly while the manager runs. `tritonembed-manager key` makes a key and its
hash. Errors are one line, which names the place and never a value: a key may stand where its hash belongs.
"""

import asyncio
import json
import re
import time
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import replace
from datetime import date, datetime, timezone
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from tritonembed_manager.router.control.quota_store import QuotaStore
from tritonembed_manager.router.control.watched_files import WatchedFile
from tritonembed_manager.router.data.quotas import SLOTS, Quotas, QuotaTable, Used
from tritonembed_manager.router.data.tenants import Key, ModelLimits, Tenant
from tritonembed_manager.router.log import warn
from tritonembed_manager.server.yaml_files import parse_yaml

OPTION = "--tenants"
_MOST_TENANTS, _MOST_KEYS, _MOST_MODELS = 1000, 100, 100
_MOST_PER_MINUTE = 10**12
_Count = Annotated[int, Field(ge=1, le=_MOST_PER_MINUTE)]
_STRICT = ConfigDict(extra="forbid", strict=True, frozen=True)


class _KeyEntry(BaseModel):
    model_config = _STRICT

    sha256: str
    expires: date | datetime | None = None

    @field_validator("sha256")
    @classmethod
    def _is_a_hash(cls, given: str) -> str:
        if not re.fullmatch(r"[0-9a-f]{64}", given):
            raise ValueError("it must be the 64 hexadecimal digits that `tritonembed-manager key` prints")
        return given

    def key(self) -> Key:
        if self.expires is None:
            return Key(self.sha256)
        if not isinstance(self.expires, datetime):
            # A day includes its end.
            end = datetime(self.expires.year, self.expires.month, self.expires.day, 23, 59, 59, tzinfo=timezone.utc)
            return Key(self.sha256, end.timestamp() + 1)
        moment = self.expires if self.expires.tzinfo else self.expires.replace(tzinfo=timezone.utc)
        return Key(self.sha256, moment.timestamp())


class _Limits(BaseModel):
    model_config = _STRICT

    tokens_per_minute: _Count | None = None
    requests_per_minute: _Count | None = None
    max_in_flight: _Count | None = None


class _ModelLimitsEntry(_Limits):
    @model_validator(mode="after")
    def _has_one(self) -> "_ModelLimitsEntry":
        if not any(self.model_dump().values()):
            raise ValueError("it must have a limit: tokens_per_minute, requests_per_minute or max_in_flight")
        return self


class _TenantEntry(_Limits):
    name: str
    keys: list[_KeyEntry] = Field(max_length=_MOST_KEYS)
    weight: float = Field(1.0, ge=0.001, le=1000, allow_inf_nan=False)
    models: list[str] | None = Field(None, min_length=1, max_length=_MOST_MODELS)
    model_limits: dict[str, _ModelLimitsEntry] = Field(default_factory=dict, max_length=_MOST_MODELS)
    admin: bool = False
    monitor: bool = False

    @field_validator("name")
    @classmethod
    def _is_a_name(cls, given: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", given):
            raise ValueError("it must be 1 to 64 letters, digits, dots, dashes and underscores")
        return given

    def tenant(self) -> Tenant:
        plain = self.model_dump(exclude={"keys", "models", "model_limits"})
        return Tenant(
            **plain,
            keys=tuple(entry.key() for entry in self.keys),
            models=None if self.models is None else tuple(self.models),
            model_limits=tuple(
                ModelLimits(self.name, model, **limits.model_dump()) for model, limits in self.model_limits.items()
            ),
        )


class _Content(BaseModel):
    model_config = _STRICT

    tenants: list[_TenantEntry] = Field(min_length=1, max_length=_MOST_TENANTS)


def parse_tenants(content: bytes) -> list[Tenant]:
    """The tenants in the content of a file. Raises ValueError, in one line."""
    found = parse_yaml(content, _Content)
    tenants = [entry.tenant() for entry in found.tenants]
    names = [tenant.name for tenant in tenants]
    if (twice := _twice(names)) is not None:
        raise ValueError(f"two tenants have the name {twice}")
    owners = [(key.sha256, tenant.name) for tenant in tenants for key in tenant.keys]
    if (twice := _twice([hash for hash, _ in owners])) is not None:
        both = " and ".join(name for hash, name in owners if hash == twice)
        raise ValueError(f"{both} have the same key")
    return tenants


def _twice(values: list[str]) -> str | None:
    seen: set[str] = set()
    for value in values:
        if value in seen:
            return value
        seen.add(value)
    return None


class TenantsFile(WatchedFile[list[Tenant]]):
    """The file, whose tenants have slots. Raises StartError, in one line, if it is wrong."""

    def __init__(self, path: Path) -> None:
        self._slots: dict[str, int] = {}
        super().__init__(path, OPTION, "tenants", lambda content: self._placed(parse_tenants(content)))

    @property
    def tenants(self) -> list[Tenant]:
        """The last valid tenants, with their slots."""
        return self.value

    @property
    def slots(self) -> dict[str, int]:
        """The slot of every tenant since the start, by name, also of tenants that have left."""
        # A name with a slash is that of limits for one model.
        return {name: slot for name, slot in self._slots.items() if "/" not in name}

    def _placed(self, tenants: list[Tenant]) -> list[Tenant]:
        """The tenants with their slots. A slot is never used for another name. Raises ValueError if none is left."""
        keys = [limits.key for tenant in tenants for limits in tenant.all_limits]
        new = [key for key in keys if key not in self._slots]
        if len(self._slots) + len(new) > SLOTS:
            raise ValueError(f"more than {SLOTS} different tenants since the start: restart the manager")
        first = len(self._slots)
        # Replaced in one step, because this runs in another thread.
        self._slots = {**self._slots, **{name: first + number for number, name in enumerate(new)}}
        return [
            replace(
                tenant,
                slot=self._slots[tenant.key],
                model_limits=tuple(replace(one, slot=self._slots[one.key]) for one in tenant.model_limits),
            )
            for tenant in tenants
        ]


USAGE_OPTION = "--usage-file"
_MINUTE_S = 60
_NOTHING = Used(0, 0, 0, 0, 0, 0, 0)


class UsageLines:
    """Writes a JSON object per minute and tenant with requests and tokens, for bills.

        {"minute": "2026-11-30T10:43:00Z", "tenant": "search", "requests": 120, "tokens": 51234, "failed": 0,
         "refused": 3}

    They come from the quota table, so a worker that dies loses none of its counts. A line has the difference to the
    line before, so lines add up. If the parent itself is killed, the last minute is missing.

    slots: returns the slots of all tenants since the start, by name. clock: seconds of Unix time.
    """

    def __init__(
        self,
        path: Path,
        table: QuotaTable,
        slots: Callable[[], dict[str, int]],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._path = path
        self._table = table
        self._slots = slots
        self._clock = clock
        self._written: dict[str, Used] = {}
        self._minute = self._now()

    async def keep(self, pause: Callable[[float], Awaitable[None]] = asyncio.sleep) -> None:
        """Write the lines of each minute at its end, until cancelled."""
        while True:
            # Never longer than a minute, even if the machine's clock is set back.
            await pause(min(max(0.0, self._minute + _MINUTE_S - self._clock()), _MINUTE_S))
            if self._now() != self._minute:
                self.write()
                self._minute = self._now()

    def write(self) -> None:
        """Append the lines of the current minute; call it at the end, too. Lines that can't be written come later."""
        found = {name: self._table.used(slot) for name, slot in self._slots().items()}
        lines = [self._line(name, self._written.get(name, _NOTHING), used) for name, used in found.items()]
        text = "".join(lines)
        if not text:
            return
        try:
            # Opened anew, so that the file can be rotated.
            with self._path.open("a", encoding="utf-8") as file:
                file.write(text)
        except OSError as error:
            warn("usage_not_written", f"{USAGE_OPTION} cannot be written: {error.strerror}; the counts are kept")
            return
        self._written = found

    def _line(self, name: str, before: Used, now: Used) -> str:
        counted = {
            "requests": now.answered - before.answered,
            "tokens": now.tokens - before.tokens,
            "failed": now.failed - before.failed,
            "refused": now.refused - before.refused,
        }
        if not any(counted.values()):
            return ""
        minute = datetime.fromtimestamp(self._minute, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
        return json.dumps({"minute": minute, "tenant": name, **counted}) + "\n"

    def _now(self) -> float:
        return self._clock() // _MINUTE_S * _MINUTE_S


class Accounts:
    """The tenants' use: the quota table, and optionally the usage file and the quota store.

    rows: of the load table; the quota table has as many cells per tenant for requests in flight.
    usage_file: of the usage lines. store: a client of Redis, for quotas over several managers.
    """

    def __init__(self, rows: int, file: TenantsFile, usage_file: Path | None, store: Any) -> None:
        self.table = QuotaTable.create(rows)
        self._file = file
        self._usage = None if usage_file is None else UsageLines(usage_file, self.table, lambda: file.slots)
        self._store = None if store is None else QuotaStore(store, Quotas(self.table, 0), lambda: file.tenants)

    @property
    def warnings(self) -> list[str]:
        """Lines for the status."""
        return [*self._file.warnings, *(self._store.warnings if self._store else ())]

    def tasks(self) -> list[Coroutine[Any, Any, None]]:
        """Tasks that run until the end."""
        return [kept.keep() for kept in (self._usage, self._store) if kept is not None]

    def worker_gone(self, index: int) -> None:
        """Clear the requests of a worker that has ended."""
        self.table.zero(index)

    def close(self) -> None:
        """Write the last usage lines, and free the table."""
        if self._usage is not None:
            self._usage.write()
        self.table.close()
