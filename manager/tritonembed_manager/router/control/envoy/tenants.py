"""The door for tenants' keys in Envoy: the data of its script (tenants.lua) about tenants, quotas and refusals."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import grpc

from tritonembed_manager.router.data import quotas, tenants
from tritonembed_manager.router.data.quotas import QuotaTable
from tritonembed_manager.router.data.tenant_dispatcher import is_clients_fault
from tritonembed_manager.router.data.tenants import Tenant
from tritonembed_manager.router.data.window import BYTES_PER_TOKEN
from tritonembed_protocol.served import FIRST

UNFINISHED = "tritonembed-unfinished "
"""Envoy writes this and `slot tokens` to stderr for each request whose end did not reach the script."""
HELD = "held"
"""Where the script notes `slot tokens` of a charged request until the end of the request."""
_SCRIPT = Path(__file__).with_name("tenants.lua")
_CODE = grpc.StatusCode
_NEVER = "-"
_CELLS = ("USED_REQUESTS", "USED_TOKENS", "AT", "SPENT_REQUESTS", "SPENT_TOKENS", "ANSWERED", "TOKENS", "FAILED")
_OVER = ("OVER_REQUESTS", "OVER_TOKENS", "OVER_IN_FLIGHT", "HEADER", "SHARES", "STRANGERS", "FIRST_OWN")
_CODES = ("UNAUTHENTICATED", "PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "CANCELLED", "DEADLINE_EXCEEDED")
_REFUSALS = ("NO_KEY", "UNKNOWN_KEY", "EXPIRED_KEY", "OTHER_MODEL")
_LIMITS = ("OVER_LIMIT", "IN_FLIGHT", "REQUESTS_USED", "TOKENS_USED")


@dataclass(frozen=True)
class EnvoyTenants:
    """tenants: with Triton's names of models. table: of their quotas, which Envoy inherits. index: Envoy's in it."""

    tenants: Sequence[Tenant]
    table: QuotaTable
    index: int


def door_script(door: EnvoyTenants) -> str:
    """The script with its settings. It has hashes of keys, but no key."""
    own = door.table.worker_cell(0, door.index) - door.table.row(0)
    settings = {
        **{name: getattr(quotas, name) for name in (*_CELLS, *_OVER)},
        **{name: getattr(_CODE, name).value[0] for name in _CODES},
        **{name: f'"{getattr(tenants, name)}"' for name in _REFUSALS},
        **{name: f'"{getattr(quotas, name)}"' for name in _LIMITS},
        "BYTES_PER_TOKEN": BYTES_PER_TOKEN,
        "TABLE": f'"/proc/self/fd/{door.table.fd}"',
        "TABLE_BYTES": door.table.size,
        "WIDTH": door.table.width,
        "OWN": own,
        # The lock of the cells outside of rows.
        "NOBODY": door.table.slots,
        "HELD": f'"{HELD}"',
        "ADMITTED": f'"{tenants.ADMITTED}"',
        "TENANTS": f"[[\n{_lines(door.tenants)}]]",
        "CLIENTS_FAULT": _codes([code for code in _CODE if code is not _CODE.OK and is_clients_fault(code)]),
    }
    return "".join(f"local {name} = {value}\n" for name, value in settings.items()) + _SCRIPT.read_text()


def _codes(codes: Sequence[grpc.StatusCode]) -> str:
    return f"{{{', '.join(f'[{code.value[0]}] = true' for code in codes)}}}"


def _lines(tenants: Sequence[Tenant]) -> str:
    """A line per key, for the script."""
    found = []
    for tenant in tenants:
        limits = (tenant.requests_per_minute, tenant.tokens_per_minute, tenant.max_in_flight)
        # Envoy has neither fair queues nor limits for a model.
        is_direct = tenant.weight == 1 and not tenant.model_limits
        of_tenant = (*(limit or _NEVER for limit in limits), int(tenant.may_use(FIRST)), int(is_direct))
        for key in tenant.keys:
            expires = _NEVER if key.expires is None else math.ceil(key.expires)
            found.append(" ".join(map(str, (key.sha256, tenant.slot, expires, *of_tenant))) + "\n")
    return "".join(found)
