"""Builds the images of the Dockerfile that need no registry of images, and runs them to a served vector.

    make test-container [ARGS="--volume /folder:/folder:ro --torch-index URL"]

The base image is a Debian bookworm of debootstrap's. buildah builds the Dockerfile as it is. The images then run as
Kubernetes runs them: as their user, with a root file system that can't be written, and with /cache, /tmp and /dev/shm.
Vectors are compared with those of sentence-transformers. It needs root, debootstrap and buildah (apt-get install), and
about 10 GB in .work/container. pip's settings of this machine are used in the build, and are not in the image.
"""

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from demo.model import find_model

ROOT = Path(__file__).resolve().parents[1]
WORK = ROOT / ".work" / "container"
BASE = "localhost/tritonembed-bookworm"
TEXTS = ["a cat sits on the mat", "stock prices fell sharply today"]
START_S = 600
PORT = 50951


def report(line: str) -> None:
    print(f"test-container: {line}", flush=True)


def buildah(*arguments: str, output: bool = False) -> str:
    """Run buildah with a storage of its own. Returns its output, or shows it."""
    storage = ["--root", str(WORK / "storage"), "--runroot", str(WORK / "run")]
    done = subprocess.run(
        ["buildah", *storage, *arguments], check=True, text=True, stdout=subprocess.PIPE if output else None
    )
    return (done.stdout or "").strip()


def make_base() -> None:
    """The base image: Debian bookworm, as debootstrap installs it."""
    if buildah("images", "--filter", f"reference={BASE}", "--quiet", output=True):
        return
    tree = WORK / "bookworm"
    if not (tree / "etc" / "debian_version").is_file() or not (tree / "usr" / "bin" / "apt-get").is_file():
        report("Debian bookworm with debootstrap")
        shutil.rmtree(tree, ignore_errors=True)
        subprocess.run(
            ["debootstrap", "--variant=minbase", "--include=ca-certificates", "bookworm", str(tree)],
            check=True,
            stdout=subprocess.DEVNULL,
        )
    container = buildah("from", "scratch", output=True)
    buildah("copy", "--quiet", container, f"{tree}/", "/", output=True)
    buildah("commit", "--quiet", container, BASE, output=True)
    buildah("rm", container, output=True)


def pip_settings() -> list[str]:
    """Volumes with the files that set up pip on this machine, and the certificates."""
    shown = subprocess.run([sys.executable, "-m", "pip", "config", "debug"], check=True, capture_output=True, text=True)
    lines = [line.strip().partition(", exists: ") for line in shown.stdout.splitlines() if ", exists: True" in line]
    files = [Path(path) for path, _, _ in lines]
    # A folder of pip's own may hold what its file names, such as constraints.
    settings = [path.parent if path.parent.name == "pip" else path for path in files]
    return [f"{path}:{path}:ro" for path in (*settings, "/etc/ssl/certs/ca-certificates.crt")]


def build(target: str, options: argparse.Namespace) -> str:
    """Build a target. Returns the image's name."""
    name = f"localhost/tritonembed-{target}"
    report(f"--target {target}")
    began = time.monotonic()
    volumes = [f"--volume={volume}" for volume in (*pip_settings(), *options.volume)]
    passed = [f"--env={name}" for name in ("PIP_FIND_LINKS", "PIP_CERT", "PIP_DEFAULT_TIMEOUT") if name in os.environ]
    arguments = [f"DEBIAN_IMAGE={BASE}"] + ([f"TORCH_INDEX={options.torch_index}"] if options.torch_index else [])
    buildah(
        "bud",
        "--isolation=chroot",
        "--layers",
        "--format=docker",
        "--quiet",
        *volumes,
        *[f"--build-arg={argument}" for argument in arguments],
        *passed,
        f"--target={target}",
        f"--tag={name}",
        f"--file={ROOT / 'Dockerfile'}",
        str(ROOT),
    )
    (shown,) = json.loads(buildah("images", "--json", name, output=True))
    report(f"{target}: {shown['size']} in {time.monotonic() - began:.0f} s")
    return name


class Running:
    """A container of an image: chroot into its files, which can't be written, as its user."""

    def __init__(self, image: str, models: Path) -> None:
        self._container = buildah("from", "--pull-never", image, output=True)
        self._root = Path(buildah("mount", self._container, output=True))
        docker = json.loads(buildah("inspect", self._container, output=True))["Docker"]
        self._config: dict[str, Any] = docker["config"]
        for folder in ("models", "cache"):
            (self._root / folder).mkdir(exist_ok=True)
        self._models = models
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, *arguments: str) -> None:
        """Start its entry point in namespaces of its own."""
        root, user = shlex.quote(str(self._root)), self._config["User"]
        script = f"""
            mount --rbind {root} {root} && mount -o remount,bind,ro {root}
            for each in tmp cache; do mount -t tmpfs -o mode=1777 tmpfs {root}/$each; done
            mount -t proc proc {root}/proc && mount --rbind /sys {root}/sys && mount --rbind /dev {root}/dev
            mount -t tmpfs -o mode=1777,size=1g tmpfs {root}/dev/shm
            mount --bind -o ro {shlex.quote(str(self._models))} {root}/models
            exec {self._chroot([*self._config["Entrypoint"], *arguments])}
        """
        assert user == "10001"
        command = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-ec", script]
        self._process = subprocess.Popen(command)

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command in the same namespaces."""
        enter = ["nsenter", "--mount", "--pid", "--target", self._pid(), "sh", "-c", self._chroot(command)]
        return subprocess.run(enter, capture_output=True, text=True)

    def wait(self, port: int) -> None:
        """Wait until the image's own health check succeeds, at this port."""
        kind, *command = self._config["Healthcheck"]["Test"]
        assert kind == "CMD"
        assert command[-2] == "--port"
        until = time.monotonic() + START_S
        while self.run(*command[:-1], str(port)).returncode != 0:
            if time.monotonic() > until:
                raise SystemExit(f"test-container: no vector in {START_S} s")
            time.sleep(2)

    def stop(self) -> int:
        """End it as a container runtime does. Returns its exit code."""
        if self._process is None:
            return 0
        if self._process.poll() is None:
            subprocess.run(["kill", "-TERM", self._pid()], check=True)
        code = self._process.wait(60)
        buildah("umount", self._container, output=True)
        buildah("rm", self._container, output=True)
        return code

    def _pid(self) -> str:
        """The process in the namespaces. Exits if it has ended."""
        assert self._process is not None
        while self._process.poll() is None:
            shown = subprocess.run(["pgrep", "-P", str(self._process.pid)], capture_output=True, text=True)
            if found := shown.stdout.split():
                return found[0]
            # It has not forked yet.
            time.sleep(0.1)
        raise SystemExit(f"test-container: the server ended with exit code {self._process.returncode}")

    def _chroot(self, command: Sequence[str]) -> str:
        user = self._config["User"]
        environment = ["env", "-i", *self._config["Env"], *command]
        return shlex.join(["chroot", f"--userspec={user}:{user}", str(self._root), *environment])


def compare(printed: str, model: str) -> float:
    """The smallest cosine of the printed vectors with sentence-transformers'."""
    from sentence_transformers import SentenceTransformer

    found = np.array([json.loads(line)["embedding"] for line in printed.splitlines()])
    expected = SentenceTransformer(model, device="cpu").encode(TEXTS, normalize_embeddings=True)
    return float((found * expected).sum(axis=1).min())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--volume", action="append", default=[], help="a folder that pip needs in the build")
    parser.add_argument("--torch-index", help="where torch comes from; by default PyTorch's index")
    options = parser.parse_args()
    missing = [name for name in ("debootstrap", "buildah") if shutil.which(name) is None]
    if missing or os.geteuid() != 0:
        raise SystemExit(
            f"test-container: needs root, and: apt-get install {' '.join(missing) or 'debootstrap buildah'}"
        )
    WORK.mkdir(parents=True, exist_ok=True)
    make_base()
    images = {target: build(target, options) for target in ("manager", "cpu")}
    model = Path(find_model().name)
    server, manager = Running(images["cpu"], model.parent), Running(images["manager"], model.parent)
    began = time.monotonic()
    server.start("--model", f"/models/{model.name}", "--port", str(PORT), "--host", "127.0.0.1")
    try:
        server.wait(PORT)
        report(f"a vector {time.monotonic() - began:.0f} s after the start, as user 10001")
        if server.run("touch", "/home/tritonembed/written").returncode == 0:
            raise SystemExit("test-container: the root file system can be written")
        ports = ["--port", str(PORT + 1), "--http-port", str(PORT + 2), "--host", "127.0.0.1"]
        manager.start("serve", "--model", "m", "--server", f"127.0.0.1:{PORT}", *ports)
        manager.wait(PORT + 1)
        embedded = manager.run("tritonembed", "embed", "--port", str(PORT + 1), "--stream", *TEXTS)
        if embedded.returncode:
            raise SystemExit(f"test-container: {embedded.stderr}")
        cosine = compare(embedded.stdout, str(model))
        report(f"through the manager: cosine with sentence-transformers {cosine:.6f} at least")
    finally:
        codes = [container.stop() for container in (manager, server)]
    report(f"exit codes after SIGTERM: {codes}")
    if cosine < 0.9999 or any(codes):
        raise SystemExit("test-container: failed")


if __name__ == "__main__":
    main()
