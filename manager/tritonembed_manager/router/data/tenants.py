"""Tenants: who may use the manager, with which keys and limits; and the tenant whose request is being handled.

The parent reads tenants from a file (control/tenants.py) and sends them to the workers. At a worker's door, a key
becomes a tenant (apis/authentication.py). From there on, a context variable has the key's hash. Tasks inherit it, so
every part of a request's path can ask for the tenant. The tenant is looked up anew each time: a key that is taken away
ends a long stream, too.
"""

import functools
import hmac
import itertools
import time
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from dataclasses import asdict, dataclass, fields, replace
from hashlib import blake2b, sha256
from typing import Any, Protocol

import grpc

from tritonembed_manager.router.data.model_names import ServedNames
from tritonembed_manager.router.data.protobuf import parameter
from tritonembed_manager.router.interfaces import DispatchError
from tritonembed_protocol.types import CACHE_SALT

ADMITTED = "x-tritonembed-tenant"
"""The metadata in which Envoy names the slot of a tenant whose request it has admitted. Clients can't send it."""
NO_KEY = "this server wants a key: send it as `Authorization: Bearer KEY` or as `x-api-key: KEY`"
UNKNOWN_KEY = "the key is not known"
EXPIRED_KEY = "the key has expired"
OTHER_MODEL = "this key is not for that model"
NO_ADMIN = "this call changes servers, and this key may not (`admin` in the tenants file)"
NO_MONITOR = "this key may not see metrics and the status (`monitor` in the tenants file)"
_CODE = grpc.StatusCode


@dataclass(frozen=True)
class Key:
    """sha256: of the key, in hexadecimal digits. expires: seconds of Unix time; None for never."""

    sha256: str
    expires: float | None = None


class QuotaLimits(Protocol):
    """Limits with a place in the quota table; None is no limit."""

    @property
    def slot(self) -> int:
        """Its row."""

    @property
    def key(self) -> str:
        """Unique among all limits."""

    @property
    def model(self) -> str:
        """Clients' name of the one model that they are for; empty for all models together."""

    @property
    def tokens_per_minute(self) -> int | None: ...

    @property
    def requests_per_minute(self) -> int | None: ...

    @property
    def max_in_flight(self) -> int | None: ...


@dataclass(frozen=True)
class ModelLimits:
    """Limits of a tenant for one model, in addition to those for all models together.

    model: its name in the file. ensemble: Triton's name; empty if no such model is served.
    """

    tenant: str
    model: str
    tokens_per_minute: int | None = None
    requests_per_minute: int | None = None
    max_in_flight: int | None = None
    slot: int = -1
    ensemble: str = ""

    @property
    def key(self) -> str:
        """A tenant's name has no slash."""
        return f"{self.tenant}/{self.model}"


@dataclass(frozen=True)
class Tenant:
    """A limit of None is no limit."""

    name: str
    keys: tuple[Key, ...] = ()
    tokens_per_minute: int | None = None
    requests_per_minute: int | None = None
    max_in_flight: int | None = None
    weight: float = 1.0
    """Its share of the servers, relative to that of others."""
    models: tuple[str, ...] | None = None
    """The models that it may use; None for all."""
    admin: bool = False
    """Whether it may change servers."""
    monitor: bool = False
    """Whether it may see metrics and the status, which concern all tenants."""
    slot: int = -1
    """Its row in the quota table, which the parent assigns."""
    model_limits: tuple[ModelLimits, ...] = ()

    @property
    def key(self) -> str:
        """Its name."""
        return self.name

    @property
    def model(self) -> str:
        """Its limits are for all models together."""
        return ""

    @property
    def all_limits(self) -> "list[QuotaLimits]":
        """The tenant's own limits, and those for each model with limits."""
        return [self, *self.model_limits]

    def limits_for(self, ensemble: str) -> "list[QuotaLimits]":
        """The limits of a request for this model. ensemble: empty if the model is not known."""
        own = (one for one in self.model_limits if ensemble and one.ensemble == ensemble)
        return [self, *itertools.islice(own, 1)]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON, for the line to the workers."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "Tenant":
        """The reverse of `to_json`."""
        plain = {field.name: data[field.name] for field in fields(cls)}
        models = data["models"]
        changed = {
            "keys": tuple(Key(**key) for key in data["keys"]),
            "models": None if models is None else tuple(models),
            "model_limits": tuple(ModelLimits(**limits) for limits in data["model_limits"]),
        }
        return cls(**{**plain, **changed})

    def may_use(self, model: str) -> bool:
        """model: Triton's name."""
        return self.models is None or model in self.models


class Tenants:
    """The tenants of a worker, by their keys. names: of the served model. clock: seconds of Unix time."""

    def __init__(
        self,
        tenants: Iterable[Tenant],
        names: ServedNames | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._names = names or ServedNames()
        self._clock = clock
        self._given: list[Tenant] = []
        self.all: list[Tenant] = []
        self._keys: dict[bytes, tuple[Tenant, Key]] = {}
        self.update(tenants)

    def update(self, tenants: Iterable[Tenant]) -> None:
        """Replace all tenants."""
        self._given = list(tenants)
        self.names_changed()

    def names_changed(self) -> None:
        """The names of the models have changed: look up those that tenants may use."""
        self.all = [with_triton_models(tenant, self._names) for tenant in self._given]
        self._keys = {bytes.fromhex(key.sha256): (tenant, key) for tenant in self.all for key in tenant.keys}

    def enter(self, key: str | None) -> Tenant:
        """The tenant of a key, which becomes the current tenant of this task. Raises DispatchError."""
        if not key:
            raise DispatchError(_CODE.UNAUTHENTICATED, NO_KEY)
        digest = sha256(key.encode()).digest()
        tenant = self.find(digest)
        _session.set(_Session(lambda: self.find(digest)))
        return tenant

    def enter_admitted(self, slot: str) -> Tenant:
        """The tenant whose request Envoy has admitted, as `enter`. slot: as Envoy's script wrote it into ADMITTED."""
        tenant = self._of_slot(slot)
        _session.set(_Session(lambda: self._of_slot(slot), is_admitted=True))
        return tenant

    def find(self, digest: bytes) -> Tenant:
        """The tenant of a key with that hash. Raises DispatchError."""
        # The time of this look-up reveals nothing: it depends on a hash of a hash, with another salt in each process.
        found = self._keys.get(digest)
        if found is None or not hmac.compare_digest(bytes.fromhex(found[1].sha256), digest):
            raise DispatchError(_CODE.UNAUTHENTICATED, UNKNOWN_KEY)
        tenant, key = found
        if key.expires is not None and self._clock() >= key.expires:
            raise DispatchError(_CODE.UNAUTHENTICATED, EXPIRED_KEY)
        return tenant

    def _of_slot(self, slot: str) -> Tenant:
        for tenant in self.all:
            if str(tenant.slot) == slot:
                return tenant
        raise DispatchError(_CODE.UNAUTHENTICATED, UNKNOWN_KEY)


@dataclass(slots=True)
class _Session:
    find: Callable[[], Tenant]
    is_admitted: bool = False
    ensemble: str = ""
    """The ensemble of the latest request's model."""


_session: ContextVar[_Session | None] = ContextVar("session", default=None)


def leave() -> None:
    """Forget the current tenant of this task, if there is one."""
    _session.set(None)


def current_tenant() -> Tenant | None:
    """The tenant whose request is being handled; None if none came through the door.

    Raises DispatchError (UNAUTHENTICATED) if its key was taken away or has expired meanwhile.
    """
    session = _session.get()
    return None if session is None else session.find()


def is_admitted() -> bool:
    """Whether Envoy has checked the quotas of the request that is being handled."""
    session = _session.get()
    return session is not None and session.is_admitted


def use_model(ensemble: str) -> None:
    """The current request is for this model; empty if it is not known."""
    session = _session.get()
    if session is not None:
        session.ensemble = ensemble


def current_limits() -> list[QuotaLimits]:
    """The limits of the current request; none without a tenant. Raises as `current_tenant`."""
    tenant, session = current_tenant(), _session.get()
    return [] if tenant is None or session is None else tenant.limits_for(session.ensemble)


def check_model(model: str) -> None:
    """model: Triton's name. Raises DispatchError (PERMISSION_DENIED) if the current tenant may not use it."""
    tenant = current_tenant()
    if tenant is not None and not tenant.may_use(model):
        raise DispatchError(_CODE.PERMISSION_DENIED, OTHER_MODEL)


@functools.lru_cache(maxsize=1024)
def cache_salt(tenant: str, own: str) -> bytes:
    """The parameter that keeps cached vectors apart, to be appended to an encoded request.

    An answer's time shows whether its text was in the cache, so a tenant could find out what others send. tenant: its
    name, which servers don't receive. own: the salt that the tenant sends for its own users, or empty.
    """
    return parameter(CACHE_SALT, blake2b(f"{tenant}\0{own}".encode(), digest_size=16).hexdigest())


def with_triton_models(tenant: Tenant, names: ServedNames) -> Tenant:
    """The tenant with Triton's names of its models. The ensemble brings its parts along: they are the same model."""
    if tenant.model_limits:
        found = ((one, names.find(one.model)) for one in tenant.model_limits)
        limits = tuple(replace(one, ensemble="" if model is None else model.served.name) for one, model in found)
        tenant = replace(tenant, model_limits=limits)
    if tenant.models is None:
        return tenant
    known = {names.to_model(model) for model in tenant.models}
    parts = {part for each in names.models if each.served.name in known for part in each.served.triton_models}
    return replace(tenant, models=tuple(sorted(known | parts)))
