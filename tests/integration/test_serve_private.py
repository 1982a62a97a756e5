"""`serve` and its servers import nothing from the current folder, and other users can't read their files or memory."""

import os
from pathlib import Path

from tests.integration.serve import Load, Serve

from tritonembed import EmbeddingClient


def test_nothing_is_imported_from_the_current_folder(manager: Serve, hostile: Path) -> None:
    with EmbeddingClient(manager.target) as client:
        assert len(client.embed(["a sentence"]).embeddings) == 1
    assert not hostile.exists(), hostile.read_text()


def test_only_their_user_can_open_the_shared_memory_of_launched_servers(manager: Serve) -> None:
    with Load(manager.target, clients=16) as load:
        load.answers(50)
        modes = {region.name: region.stat().st_mode & 0o777 for region in manager.regions()}
    assert modes
    assert set(modes.values()) == {0o600}, modes


def test_only_their_user_can_open_the_files_of_launched_servers(manager: Serve) -> None:
    [server] = manager.tritonservers().values()
    home = Path(os.readlink(f"/proc/{server}/cwd"))
    assert list(home.iterdir()) == []
    assert {folder.stat().st_mode & 0o777 for folder in (home, home.parent, home.parent / "metrics")} == {0o700}
