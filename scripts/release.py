"""Builds a release into dist/: wheel and source archive, bills of materials, release notes. `make release`.

    python scripts/release.py [--out dist]

It publishes nothing. It stops, with a line per fault, if the metadata is incomplete, if CHANGELOG.md has no section for
the version, if the Helm chart has another version, or if a dependency's licence is unknown or not allowed.
"""

import argparse
import email
import hashlib
import json
import re
import shutil
import subprocess
import sys
import tarfile
import urllib.parse
import zipfile
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import tomllib

ROOT = Path(__file__).resolve().parents[1]
LOCKS = {"cpu": ("torch-cpu", "cpu"), "cuda": ("cuda",)}
"""The files of a lock. Beside torch-cpu.lock, torch is in the head of cuda.lock."""
_PIN = re.compile(
    r"^(?:#   pip install )?(?P<name>[\w.-]+)(\[[\w,-]*\])?==(?P<version>\S+) "
    r"--(?:hash=sha256:(?P<hash>[0-9a-f]{64})|index-url )",
    re.MULTILINE,
)
_ALLOWED = re.compile(
    r"BSD|\b(Apache|MIT|ISC|PSF|Python Software Foundation|MPL|Mozilla|Unlicense|ZPL|Zlib|HPND|CC0|CNRI|NCSA|Boost)",
    re.I,
)
"""Licences that let a program be shipped with the package, without conditions on the program's own licence."""
_REVIEWED = {
    "intel-openmp": "Intel Simplified Software License: redistribution is allowed",
    "intel-cmplr-lib-ur": "Intel Simplified Software License: redistribution is allowed",
    "nvidia-pytriton": "Apache-2.0, in its LICENSE file",
    "oss-harmony": "Apache-2.0, in its LICENSE file",
    "pycountry": "LGPL-2.1: used as it is, and not part of our wheel",
    "sentencepiece": "Apache-2.0, in its source repository",
    "setuptools": "MIT, in its LICENSE file",
}
"""Packages whose metadata names no licence of the list, and what was read in their files."""


class ReleaseError(Exception):
    """Something that keeps the release from being made; the message is one line."""


def notes(version: str, changelog: str) -> str:
    """The section of a version. Raises ReleaseError if there is none, or if it says nothing."""
    found = re.search(rf"^## {re.escape(version)}(?: .*?)?\n(.*?)(?=^## |\Z)", changelog, re.MULTILINE | re.DOTALL)
    if found is None or not found[1].strip():
        raise ReleaseError(f"CHANGELOG.md has no section for {version}")
    return f"# tritonembed {version}\n\n{found[1].strip()}\n"


def check_metadata(text: str, project: dict[str, Any]) -> list[str]:
    """What is wrong with the METADATA of the wheel: what an index would refuse or show badly."""
    found = email.message_from_string(text)
    faults = [f"the metadata has no {name}" for name in ("Summary", "License-Expression") if not found[name]]
    if (found["Name"], found["Version"]) != (project["name"], project["version"]):
        faults.append("the metadata has another name or version")
    if found["Description-Content-Type"] != "text/markdown" or not str(found.get_payload()).strip():
        faults.append("the metadata has no description in Markdown")
    if not found["Requires-Python"]:
        faults.append("the metadata does not say for which Pythons it is")
    if any(" @ " in line for line in found.get_all("Requires-Dist", [])):
        faults.append("a dependency is a URL, which an index refuses")
    if not found.get_all("License-File", []):
        faults.append("the licence's file is not in the wheel")
    return faults


def pins(lock: str) -> list[dict[str, Any]]:
    """Name, version and SHA-256 of each package that a lock installs; the hash is None for the torch of cuda.lock."""
    texts = [(ROOT / "requirements" / f"{file}.lock").read_text(encoding="utf-8") for file in LOCKS[lock]]
    return [found.groupdict() for text in texts for found in _PIN.finditer(text)]


def licence(name: str) -> str | None:
    """What an installed package's metadata says of its licence; None if it is not installed or says nothing."""
    try:
        found = distribution(name).metadata
    except PackageNotFoundError:
        return None
    classified = [
        line.rpartition(" :: ")[2] for line in found.get_all("Classifier", []) if line.startswith("License ::")
    ]
    said = [found.get("License-Expression"), *classified, *(found.get("License") or "").splitlines()[:3]]
    return "; ".join(part.strip() for part in said if part and part.strip()) or None


def check_licences(names: list[str]) -> list[str]:
    """The packages of a lock that may not be shipped as they are, or whose licence is unknown."""
    faults = []
    for name in names:
        said = _REVIEWED.get(name) or licence(name)
        if said is None or (name not in _REVIEWED and not _ALLOWED.search(said)):
            faults.append(f"the licence of {name} is {said or 'unknown'}")
    return faults


def bill(lock: str, version: str) -> dict[str, Any]:
    """A bill of materials (CycloneDX 1.5) of what a lock installs beside this version."""
    components = []
    for pin in pins(lock):
        said = licence(pin["name"])
        component: dict[str, Any] = {
            "type": "library",
            "name": pin["name"],
            "version": pin["version"],
            "purl": f"pkg:pypi/{pin['name'].lower()}@{urllib.parse.quote(pin['version'])}",
        }
        if pin["hash"] is not None:
            component["hashes"] = [{"alg": "SHA-256", "content": pin["hash"]}]
        if said:
            component["licenses"] = [{"license": {"name": said}}]
        components.append(component)
    product = {"type": "application", "name": "tritonembed", "version": version}
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {"component": product},
        "components": components,
    }


def build(out: Path) -> tuple[Path, Path]:
    """The wheel and the source archive, in `out`."""
    shutil.rmtree(out, ignore_errors=True)
    command = [sys.executable, "-m", "hatchling", "build", "-d", str(out)]
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    (wheel,), (archive,) = out.glob("*.whl"), out.glob("*.tar.gz")
    return wheel, archive


def check_all(wheel: Path, archive: Path, project: dict[str, Any]) -> list[str]:
    """Everything that is wrong with what was built."""
    with zipfile.ZipFile(wheel) as file:
        (name,) = [name for name in file.namelist() if name.endswith(".dist-info/METADATA")]
        faults = check_metadata(file.read(name).decode(), project)
    with tarfile.open(archive) as file:
        if not any(name.endswith("/pyproject.toml") for name in file.getnames()):
            faults.append("the source archive can't be built")
    chart = (ROOT / "deploy" / "helm" / "tritonembed" / "Chart.yaml").read_text(encoding="utf-8")
    for field in ("version", "appVersion"):
        if not re.search(rf"^{field}: {re.escape(project['version'])}$", chart, re.MULTILINE):
            faults.append(f"the Helm chart's {field} is not {project['version']}")
    return faults + check_licences([pin["name"] for pin in pins("cpu")])


def main() -> int:
    """Make the release. Returns the exit code."""
    parser = argparse.ArgumentParser(description="Builds a release, and publishes nothing.")
    parser.add_argument("--out", type=Path, default=ROOT / "dist")
    out = parser.parse_args().out
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    version = project["version"]
    try:
        text = notes(version, (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"))
        wheel, archive = build(out)
        faults = check_all(wheel, archive, project)
    except (ReleaseError, subprocess.CalledProcessError) as error:
        faults = [str(error)]
    if faults:
        print("\n".join(f"release: {fault}" for fault in faults), file=sys.stderr)
        return 1
    (out / "RELEASE_NOTES.md").write_text(text, encoding="utf-8")
    for lock in LOCKS:
        (out / f"sbom-{lock}.json").write_text(json.dumps(bill(lock, version), indent=2) + "\n", encoding="utf-8")
    sums = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}" for path in sorted(out.iterdir())]
    (out / "SHA256SUMS").write_text("\n".join(sums) + "\n", encoding="utf-8")
    print(f"release: {version} in {out.name}/: {', '.join(sorted(path.name for path in out.iterdir()))}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
