"""Find perf_analyzer, or unpack it from a tritonclient wheel together with the libraries it lacks."""

import ctypes
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

from tritonembed_perf.failures import UsageError
from tritonembed_perf.reports import cache_folder

PROGRAM = "perf_analyzer"
WHEELS = (((2, 38), "2.60.0"), ((2, 17), "2.50.0"))
"""Which tritonclient's perf_analyzer runs from which glibc on; later wheels have none."""

LIBRARIES = ("libb64.so.0d", "libcudart.so.12")
"""What the program is linked with and most machines lack."""


@dataclass(frozen=True)
class Program:
    """A perf_analyzer that starts. environment: variables it needs in addition to the inherited ones."""

    path: Path
    environment: dict[str, str] = field(default_factory=dict)


def find_program(given: Path | None) -> Program:
    """`given`, else on PATH, else in the cache, where it is unpacked from a wheel that pip fetches once.

    Raises UsageError if there is none.
    """
    found = shutil.which(given or PROGRAM)
    if found is not None:
        return Program(Path(found))
    if given is not None:
        raise UsageError(f"--perf-analyzer: {given} is not a program")
    version = wheel_for(platform.libc_ver()[1])
    folder = cache_folder() / f"{PROGRAM}-{version}"
    if not (folder / PROGRAM).exists():
        _unpack(version, folder)
    libraries = [str(_link_libraries(folder / "lib")), os.environ.get("LD_LIBRARY_PATH", "")]
    return Program(folder / PROGRAM, {"LD_LIBRARY_PATH": ":".join(filter(None, libraries))})


def wheel_for(glibc: str) -> str:
    """The tritonclient whose perf_analyzer runs with this glibc. Raises UsageError."""
    parts = glibc.split(".")
    have = (int(parts[0]), int(parts[1])) if len(parts) >= 2 and all(part.isdecimal() for part in parts[:2]) else (0, 0)
    for needed, version in WHEELS:
        if have >= needed:
            return version
    raise UsageError(f"no {PROGRAM} on PATH, and no wheel has one for this C library: name one with --perf-analyzer")


def _unpack(version: str, folder: Path) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
        command += ["--dest", scratch, f"tritonclient=={version}"]
        fetched = subprocess.run(command, capture_output=True, text=True)
        wheels = list(Path(scratch).glob("*.whl"))
        if fetched.returncode or not wheels:
            raise UsageError(
                f"no {PROGRAM} on PATH, and pip can't fetch tritonclient {version}, whose wheel has one: "
                "name one with --perf-analyzer"
            )
        target = Path(scratch) / "new"
        target.mkdir()
        with zipfile.ZipFile(wheels[0]) as wheel:
            member = next(name for name in wheel.namelist() if name.endswith(f"/{PROGRAM}"))
            (target / PROGRAM).write_bytes(wheel.read(member))
        (target / PROGRAM).chmod(0o755)
        try:
            target.rename(folder)
        except OSError:
            # Another process has unpacked it meanwhile.
            if not (folder / PROGRAM).exists():
                raise


def _link_libraries(folder: Path) -> Path:
    """A folder with the libraries under the names that the program asks for; those of the system need no link."""
    folder.mkdir(exist_ok=True)
    for name in LIBRARIES:
        link = folder / name
        if link.exists():
            continue
        link.unlink(missing_ok=True)
        if (bundled := _bundled(name)) is not None:
            link.symlink_to(bundled)
        elif not _loads(name):
            raise UsageError(f"{PROGRAM} needs {name}: pip install --no-deps nvidia-pytriton, whose wheel has it")
    return folder


def _bundled(name: str) -> Path | None:
    """nvidia-pytriton carries them with a hash in the name: libb64-98cb6333.so.0d."""
    spec = importlib.util.find_spec("pytriton")
    if spec is None or not spec.submodule_search_locations:
        return None
    stem, _, version = name.partition(".so.")
    folder = Path(next(iter(spec.submodule_search_locations))).parent / "nvidia_pytriton.libs"
    return next(iter(sorted(folder.glob(f"{stem}-*.so.{version}*"))), None)


def _loads(name: str) -> bool:
    try:
        ctypes.CDLL(name)
    except OSError:
        return False
    return True
