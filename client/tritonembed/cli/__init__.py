"""The command `tritonembed`."""

from __future__ import annotations

import sys

EXTRAS = ("typer", "rich", "pyarrow")
MISSING = "tritonembed: the command needs more than the client library: pip install 'tritonembed[cli]'"


def main() -> None:
    """Run the command line; if packages are missing, print one line that names the extra to install."""
    try:
        from .app import run

        run()
    except KeyboardInterrupt:
        sys.exit(130)  # while the packages were being loaded
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] not in EXTRAS:
            raise
        print(MISSING, file=sys.stderr)
        sys.exit(2)
