"""Adds the digests that their registries have now to the images of the Dockerfile and compose.yaml: `make pin-images`.

    python scripts/pin_images.py FILE...

`ARG X_IMAGE=name:tag` and `image: name:tag` become `name:tag@sha256:…`; a digest that is there is renewed. No digest is
written that its registry did not give: if one can't be reached, no file changes, and the exit code is 1.
"""

import json
import re
import sys
import urllib.error
import urllib.request
from pathlib import Path

_IMAGE = re.compile(
    r"^(ARG \w+_IMAGE=|\s+image: )((?!tritonembed)[\w./:-]+:[\w.-]+)(@sha256:[0-9a-f]{64})?$", re.MULTILINE
)
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_ACCEPT = ", ".join(
    f"application/vnd.{kind}+json"
    for kind in (
        "oci.image.index.v1",
        "docker.distribution.manifest.list.v2",
        "oci.image.manifest.v1",
        "docker.distribution.manifest.v2",
    )
)
_PATIENCE_S = 20


class PinError(Exception):
    """An image's digest can't be had; the message is one line."""


def digest(image: str) -> str:
    """The digest of `name:tag` in its registry. Raises PinError."""
    name, _, tag = image.rpartition(":")
    host, _, path = name.partition("/")
    if "." not in host and ":" not in host:
        host, path = "registry-1.docker.io", name if "/" in name else f"library/{name}"
    scheme = "http" if host.startswith(("127.0.0.1", "localhost")) else "https"
    url = f"{scheme}://{host}/v2/{path}/manifests/{tag}"
    try:
        found = _head(url)
    except (OSError, ValueError, KeyError) as error:
        reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or error
        raise PinError(f"{image}: {host} does not give its digest: {reason}") from None
    if not _DIGEST.fullmatch(found or ""):
        raise PinError(f"{image}: {host} names no digest")
    return found


def _head(url: str) -> str:
    request = urllib.request.Request(url, method="HEAD", headers={"Accept": _ACCEPT})
    try:
        with urllib.request.urlopen(request, timeout=_PATIENCE_S) as answer:
            return answer.headers["Docker-Content-Digest"] or ""
    except urllib.error.HTTPError as error:
        if error.code != 401:
            raise
        request.add_header("Authorization", f"Bearer {_token(error.headers['WWW-Authenticate'])}")
    with urllib.request.urlopen(request, timeout=_PATIENCE_S) as answer:
        return answer.headers["Docker-Content-Digest"] or ""


def _token(challenge: str) -> str:
    """A token for everybody, as the challenge of a registry says where to get it."""
    fields = dict(re.findall(r'(\w+)="([^"]*)"', challenge))
    query = "&".join(f"{name}={fields[name]}" for name in ("service", "scope") if name in fields)
    with urllib.request.urlopen(f"{fields['realm']}?{query}", timeout=_PATIENCE_S) as answer:
        found = json.load(answer)
    return found.get("token") or found["access_token"]


def main(paths: list[str]) -> int:
    """Pin the images of these files. Returns the exit code."""
    texts = {Path(path): Path(path).read_text(encoding="utf-8") for path in paths}
    images = sorted({found[2] for text in texts.values() for found in _IMAGE.finditer(text)})
    try:
        digests = {image: digest(image) for image in images}
    except PinError as error:
        print(f"pin-images: {error}; no file was changed", file=sys.stderr)
        return 1
    for path, text in texts.items():
        path.write_text(_IMAGE.sub(lambda found: f"{found[1]}{found[2]}@{digests[found[2]]}", text), encoding="utf-8")
    for image, found in digests.items():
        print(f"{image}@{found}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
