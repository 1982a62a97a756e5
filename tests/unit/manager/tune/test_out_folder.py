"""The folder that `tune` writes: errors are found at once, and folders made in vain are removed."""

import errno
from pathlib import Path

import pytest

from tritonembed_manager.errors import StartError
from tritonembed_manager.server.repository import MARKER
from tritonembed_manager.tune.output import out_folder


def take(out, force=False):
    with out_folder(Path(out), force):
        pass


def test_a_folder_in_use_is_refused_before_anything_is_measured(tmp_path):
    (tmp_path / "thesis.txt").touch()
    with pytest.raises(StartError, match="was not written by render"):
        take(tmp_path)
    take(tmp_path, force=True)
    with pytest.raises(StartError, match="is not a folder"):
        take(tmp_path / "thesis.txt", force=True)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize("out", ["file/deeper/out", "/proc/x", "/proc/self/x/y"])
def test_a_place_where_nothing_can_be_written_is_refused_for_root_too(out, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StartError, match=r"cannot write .*: no folder can be made there \(.+\)"):
        take(tmp_path / out)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_mounted_folder_is_refused(tmp_path, monkeypatch):
    def replace(path, target):
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(Path, "replace", replace)
    with pytest.raises(StartError, match=r"cannot write .*: a mounted folder can't be replaced; choose one inside it"):
        take(tmp_path)
    assert not list(tmp_path.iterdir())
    assert not list(tmp_path.parent.glob(f".{tmp_path.name}-*"))


def test_new_folders_are_removed_unless_something_was_written(tmp_path):
    out = tmp_path / "new" / "deeper" / "out"
    with out_folder(out, False):
        assert out.is_dir()
    assert not list(tmp_path.iterdir())
    with pytest.raises(KeyboardInterrupt), out_folder(out, False):
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())
    with out_folder(out, False):
        (out / "model.json").touch()
    assert [path.name for path in out.iterdir()] == ["model.json"]


def test_existing_folders_stay(tmp_path):
    take(tmp_path)
    assert tmp_path.is_dir()
    (tmp_path / MARKER).touch()
    take(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [MARKER]


@pytest.mark.parametrize(
    ("out", "reason"),
    [
        ("--dtype", "the folder to write comes first, before --dtype"),
        (".", r"\. can't be replaced; give the folder to write by its name"),
        ("..", r"\.\. can't be replaced; give the folder to write by its name"),
    ],
)
def test_a_name_that_no_folder_can_have_is_refused(out, reason):
    with pytest.raises(StartError, match=reason):
        take(out)
