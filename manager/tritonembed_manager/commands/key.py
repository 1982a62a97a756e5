"""`tritonembed-manager key`: makes a key for a tenant, and the line with its hash for the tenants file."""

from typing import Annotated

import typer

from tritonembed_manager.commands.signature import with_options
from tritonembed_manager.errors import StartError, one_line_errors

_PREFIX = "te-"
_BYTES = 32


@with_options
def key(
    expires: Annotated[
        str | None, typer.Option(None, help="The day after which it is refused, such as 2027-06-30 (UTC).")
    ],
) -> None:
    """Print a new key, which is shown only this once, and below it its entry for `keys:` of the tenants file."""
    import secrets
    from datetime import date
    from hashlib import sha256

    with one_line_errors():
        try:
            day = date.fromisoformat(expires) if expires else None
        except ValueError:
            raise StartError("--expires must be a day such as 2027-06-30") from None
        # The prefix lets scanners of source code recognise keys.
        made = _PREFIX + secrets.token_urlsafe(_BYTES)
        print(made)
        print(f"- sha256: {sha256(made.encode()).hexdigest()}")
        if day is not None:
            print(f"  expires: {day}")
