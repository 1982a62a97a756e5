"""The files that Envoy watches. Each is replaced by a move, so that Envoy never reads half a file."""

import json
import os
from pathlib import Path

from tritonembed_manager.router.control.envoy.protobuf_json import Config


class XdsFiles:
    """Files in a folder of this user (0700). Their versions grow with each change."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._written: dict[str, list[Config]] = {}
        self._version = 0

    def path(self, kind: str) -> Path:
        """The file of a kind of resources."""
        return self.folder / f"{kind}.json"

    def write(self, kind: str, *resources: Config) -> bool:
        """Replace all resources of a kind. Returns whether they have changed."""
        if self._written.get(kind) == list(resources):
            return False
        self._version += 1
        self.write_plain(kind, {"version_info": str(self._version), "resources": list(resources)})
        self._written[kind] = list(resources)
        return True

    def write_plain(self, name: str, content: Config) -> Path:
        """Write a file that is not a list of resources. Returns its path."""
        path, new = self.path(name), self.folder / f".{name}.new"
        with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            json.dump(content, file)
        new.replace(path)
        return path
