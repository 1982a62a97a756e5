"""The Unix sockets between Envoy and the manager's processes, in a folder that no other user can open."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Sockets:
    """folder: its path is short enough for a socket's name."""

    folder: Path

    @property
    def admin(self) -> Path:
        """Envoy's administration."""
        return self.folder / "admin.sock"

    def grpc(self, worker: int) -> Path:
        """On which a worker speaks gRPC."""
        return self.folder / f"grpc-{worker}.sock"

    def http(self, worker: int) -> Path:
        """On which a worker speaks HTTP."""
        return self.folder / f"http-{worker}.sock"
