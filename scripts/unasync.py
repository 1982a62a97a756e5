"""Writes the blocking client from the asyncio client, where their code is equal.

    python scripts/unasync.py            write the generated files
    python scripts/unasync.py --check    exit with 1 if a generated file is not current

The idea is httpcore's: the asyncio file is the source, and a few words of it are replaced.
"""

import re
import subprocess
import sys
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "client" / "tritonembed"
FILES = {"_aio.py": "_client.py", "_describe_aio.py": "_describe.py", "_pipeline_aio.py": "_pipeline.py"}
REPLACEMENTS = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"from asyncio import Queue", "from queue import SimpleQueue as Queue"),
        (r"_(describe|pipeline|transport)_aio\b", r"_\1"),
        (r"\bAsync(EmbeddingClient|Transport)\b", r"\1"),
        (r"\bAsyncGenerator\[(.+?), None\]", r"Generator[\1, None, None]"),
        (r"\bAsyncGenerator\b", "Generator"),
        (r"\baclosing\b", "closing"),
        (r"__a(enter|exit)__", r"__\1__"),
        (r"\basync (def|with|for)\b", r"\1"),
        # What a call answers: gRPC's futures are not awaited.
        (r"\bawait call$", "call.result()"),
        (r"\bawait ", ""),
    )
]


def unasync(source: str, name: str) -> str:
    """The blocking code of an asyncio file."""
    lines = source.splitlines()
    for pattern, replacement in REPLACEMENTS:
        lines = [pattern.sub(replacement, line) for line in lines]
    header = f"# Generated from {name} by scripts/unasync.py: edit that file, then run `make unasync`.\n"
    return _formatted(header + "\n".join(lines) + "\n")


def _formatted(code: str) -> str:
    for command in (["check", "--select", "I", "--fix-only", "--quiet"], ["format", "--quiet"]):
        ruff = [sys.executable, "-m", "ruff", *command, "--stdin-filename", str(PACKAGE / "_client.py"), "-"]
        code = subprocess.run(ruff, input=code, capture_output=True, text=True, check=True).stdout
    return code


def main() -> int:
    """The exit code."""
    stale = 0
    for name, generated in FILES.items():
        code = unasync((PACKAGE / name).read_text(encoding="utf-8"), name)
        path = PACKAGE / generated
        if path.exists() and path.read_text(encoding="utf-8") == code:
            continue
        if "--check" in sys.argv[1:]:
            print(
                f"client/tritonembed/{generated} is not current: `make unasync` writes it from {name}", file=sys.stderr
            )
            stale = 1
        else:
            path.write_text(code, encoding="utf-8")
    return stale


if __name__ == "__main__":
    sys.exit(main())
