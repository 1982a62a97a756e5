"""Where a command writes its results: found to be good before anything is measured."""

import argparse
import json
import os
from pathlib import Path
from typing import Any

from tritonembed_perf.failures import BenchError, UsageError


def check_output(option: str, path: Path | None) -> None:
    """`path` is a file that can be made or replaced; None is none. Raises UsageError, which names the option."""
    if path is None:
        return
    if not path.parent.is_dir():
        raise UsageError(f"{option}: there is no folder {path.parent}")
    if path.is_dir():
        raise UsageError(f"{option}: {path} is a folder")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise UsageError(f"{option}: {path} can't be written")


def output_file(text: str) -> Path:
    """The type of an option of a script (argparse): a path that `check_output` accepts."""
    path = Path(text)
    try:
        check_output("", path)
    except UsageError as error:
        # argparse names the option itself.
        raise argparse.ArgumentTypeError(str(error).removeprefix(": ")) from None
    return path


def make_folder(option: str, path: Path | None) -> None:
    """Make folder `path` where it is missing; None is none. Raises UsageError, which names the option."""
    if path is None:
        return
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError:
        raise UsageError(f"{option}: there is no folder {path}, and it can't be made") from None
    if not os.access(path, os.W_OK):
        raise UsageError(f"{option}: nothing can be written to {path}")


def write_report(path: Path, report: dict[str, Any]) -> None:
    """As JSON. Raises BenchError where it can't be written any more."""
    try:
        path.write_text(json.dumps(report, indent=1) + "\n")
    except OSError as error:
        raise BenchError(f"{path} can't be written: {error.strerror}") from None
