"""The Dockerfile is clean, its locks exist, and digests come from registries alone. `make test-container` builds it."""

import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import tomllib
from tests.deploy.charts import ROOT

DOCKERFILE = ROOT / "Dockerfile"
DIGEST = f"sha256:{'0123456789abcdef' * 4}"


def test_hadolint_finds_nothing():
    done = subprocess.run([ROOT / ".venv" / "bin" / "hadolint", str(DOCKERFILE)], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


def stages() -> dict[str, str]:
    """The text of each stage."""
    texts = re.split(r"^FROM ", DOCKERFILE.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    return {found[1]: text for text in texts if (found := re.match(r".* AS ([\w-]+)\n", text))}


def test_no_image_runs_as_root_and_each_checks_an_inference():
    targets = stages()
    assert set(targets) == {"python", "wheel", "manager", "cpu", "server"}
    for name in ("manager", "cpu", "server"):
        # USER is the last of them, so nothing after it runs as root.
        assert re.search(r"\nUSER 10001\n(?!.*\n(?:RUN|COPY|USER) )", targets[name], re.DOTALL), name
        (command,) = re.findall(r"HEALTHCHECK .*\\\n +CMD (.*)", targets[name])
        assert command.startswith('["tritonembed", "health"'), name


def test_the_labels_of_each_image_name_what_is_in_it():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    assert f"\nARG VERSION={version}\n" in DOCKERFILE.read_text(encoding="utf-8")
    for name, image in (("manager", "tritonembed-manager"), ("cpu", "tritonembed-cpu"), ("server", "tritonembed")):
        (text,) = re.findall(
            r"^ARG VERSION\nARG REVISION\nLABEL (.*?[^\\])\n", stages()[name], re.MULTILINE | re.DOTALL
        )
        labels = dict(re.findall(r'org\.opencontainers\.image\.(\w+)="(.*?)"', text))
        assert labels.pop("description")
        expected = {"title": image, "version": "${VERSION}", "revision": "${REVISION}", "licenses": "Apache-2.0"}
        assert labels == expected


def test_what_is_copied_into_images_is_in_the_context():
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    for names in re.findall(r"^COPY (?!--from)(.*) \S+$", DOCKERFILE.read_text(encoding="utf-8"), re.MULTILINE):
        for name in names.split():
            assert (ROOT / name).exists(), name
            assert name == "." or f"!{name.split('/')[0]}" in ignored, name


class Registry(BaseHTTPRequestHandler):
    """A registry that wants a token, as Docker's does, and knows two images."""

    def do_HEAD(self) -> None:
        if self.headers["Authorization"] != "Bearer for-all":
            self.send_response(401)
            host = self.headers["Host"]
            challenge = f'Bearer realm="http://{host}/token",service="here",scope="repository:pull"'
            self.send_header("WWW-Authenticate", challenge)
        elif self.path in ("/v2/debian/manifests/bookworm-slim", "/v2/prom/prometheus/manifests/v3.5.0"):
            self.send_response(200)
            self.send_header("Docker-Content-Digest", DIGEST)
        else:
            self.send_response(404)
        self.end_headers()

    def do_GET(self) -> None:
        assert self.path == "/token?service=here&scope=repository:pull"
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b'{"token": "for-all"}')

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def registry():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Registry)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def pin(*paths):
    script = ROOT / "scripts" / "pin_images.py"
    return subprocess.run([sys.executable, script, *map(str, paths)], capture_output=True, text=True)


def test_images_get_the_digests_of_their_registry(registry, tmp_path):
    dockerfile, compose = tmp_path / "Dockerfile", tmp_path / "compose.yaml"
    dockerfile.write_text(f"ARG DEBIAN_IMAGE={registry}/debian:bookworm-slim\nFROM ${{DEBIAN_IMAGE}} AS python\n")
    old = f"@sha256:{'f' * 64}"
    compose.write_text(
        f"services:\n  a:\n    image: tritonembed\n  b:\n    image: {registry}/prom/prometheus:v3.5.0{old}\n"
    )
    done = pin(dockerfile, compose)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"ARG DEBIAN_IMAGE={registry}/debian:bookworm-slim@{DIGEST}\nFROM ${{" in dockerfile.read_text()
    assert compose.read_text().endswith(
        f"image: tritonembed\n  b:\n    image: {registry}/prom/prometheus:v3.5.0@{DIGEST}\n"
    )


def test_without_the_registry_nothing_changes_and_one_line_says_so(registry, tmp_path):
    known, unknown = tmp_path / "Dockerfile", tmp_path / "compose.yaml"
    known.write_text(before := f"ARG DEBIAN_IMAGE={registry}/debian:bookworm-slim\n")
    unknown.write_text(f"    image: {registry}/debian:none\n")
    done = pin(known, unknown)
    assert done.returncode == 1
    assert done.stderr == (
        f"pin-images: {registry}/debian:none: {registry} does not give its digest: Not Found; no file was changed\n"
    )
    assert known.read_text() == before


def test_every_image_from_elsewhere_can_be_pinned():
    files = [DOCKERFILE, ROOT / "deploy" / "compose" / "compose.yaml"]
    texts = [path.read_text(encoding="utf-8") for path in files]
    given = re.findall(r"^FROM \$\{(\w+)\}", texts[0], re.MULTILINE)
    assert given == ["DEBIAN_IMAGE", "TRITON_IMAGE"]
    sys.path.insert(0, str(ROOT / "scripts"))
    import pin_images

    found = [match[2] for text in texts for match in pin_images._IMAGE.finditer(text)]
    assert len(found) == len(given) + 3
