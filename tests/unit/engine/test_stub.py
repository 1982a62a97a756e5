"""Changes of a stub to its process before a model is loaded."""

from tritonembed_engine.stub.process import make_region_private


def test_only_its_user_may_open_a_stubs_region_whoever_started_the_server(tmp_path):
    for name in ("triton_python_backend_shm_region_1", "of_another"):
        (tmp_path / name).touch()
        (tmp_path / name).chmod(0o644)
    command = tmp_path / "cmdline"
    words = ["/t/stub", "/r/embedder/1/model.py", "triton_python_backend_shm_region_1", "1048576", "", "7"]
    command.write_bytes("\0".join(words).encode())
    make_region_private(command, tmp_path)
    modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir() if path != command}
    assert modes == {"triton_python_backend_shm_region_1": 0o600, "of_another": 0o644}


def test_without_a_region_nothing_happens(tmp_path):
    make_region_private(tmp_path / "missing", tmp_path)
