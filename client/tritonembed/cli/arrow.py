"""pyarrow, imported only by what reads or writes Parquet."""

from __future__ import annotations

from typing import Any

from .failures import UsageError


def load_arrow() -> Any:
    """The module pyarrow with its submodule parquet; UsageError where the installed one cannot be imported."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ModuleNotFoundError:
        raise  # the command's start says what to install
    except ImportError as error:
        # Its recent releases refuse numpy 1, which some servers' environments need.
        reason = str(error).partition("\n")[0]
        raise UsageError(f"Parquet files need a pyarrow that fits the other packages: {reason}") from error
    return pyarrow
