"""Each of two hundred folders gives sentence-transformers' vectors or is refused by name."""

from pathlib import Path

from tests.unit.engine.test_folders_property import check_folders


def test_every_folder_gives_sentence_transformers_vectors_or_is_refused(tmp_path: Path) -> None:
    check_folders(tmp_path, folders=200, least_accepted=105)
