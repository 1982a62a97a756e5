"""Tenants with keys that tests know, and quotas whose clock a test moves."""

from hashlib import sha256
from pathlib import Path

from tests.fakes.clock import Clock

from tritonembed_manager.router.data.quotas import Quotas, QuotaTable
from tritonembed_manager.router.data.tenants import Key, Tenant


def key_of(name: str) -> str:
    """The key of a tenant."""
    return f"te-key-of-{name}"


def hash_of(name: str) -> str:
    """The hash of the tenant's key, as in the file."""
    return sha256(key_of(name).encode()).hexdigest()


def tenant(name: str = "a", slot: int = 0, expires: float | None = None, **more: object) -> Tenant:
    """A tenant with one key."""
    return Tenant(name, keys=(Key(hash_of(name), expires),), slot=slot, **more)  # type: ignore[arg-type]


def write_tenants(path: Path, **tenants: str) -> Path:
    """Write a tenants file. tenants: further lines of YAML, by name."""
    entries = [
        f"  - name: {name}\n    keys:\n      - sha256: {hash_of(name)}\n"
        + "".join(f"    {line.strip()}\n" for line in more.splitlines() if line.strip())
        for name, more in tenants.items()
    ]
    path.write_text("tenants:\n" + "".join(entries))
    return path


class CountedTime:
    """Quotas of `workers` workers that share a table, and their clock."""

    def __init__(self, workers: int = 1) -> None:
        self.clock = Clock()
        self.table = QuotaTable.create(workers, slots=8)
        self.workers = [Quotas(self.table, index, self.clock) for index in range(workers)]
        self.quotas = self.workers[0]
