"""What the command lines of scripts share."""

import argparse
import contextlib
import math
import sys
from pathlib import Path

from tritonembed_manager.tune.loads import LoadShape
from tritonembed_perf.failures import UsageError
from tritonembed_perf.reports import check_output


def parse_with_rest(parser: argparse.ArgumentParser) -> tuple[argparse.Namespace, list[str]]:
    """The script's own options, and what follows `--`: those of the server that it starts."""
    words = sys.argv[1:]
    end = words.index("--") if "--" in words else len(words)
    return parser.parse_args(words[:end]), words[end + 1 :]


def script_parser(doc: str | None, *, model: bool = True, json: bool = True) -> argparse.ArgumentParser:
    """Of a script in scripts/: described by its first line, with a model's folder and --json."""
    parser = argparse.ArgumentParser(description=(doc or "").splitlines()[0])
    if model:
        parser.add_argument("model", help="folder of the model")
    if json:
        parser.add_argument("--json", type=output_file, help="write the results here")
    return parser


def loads_option(text: str) -> list[LoadShape]:
    """Of `50x64@4,50x1@16`, as the type of an argparse option."""
    from tritonembed_perf.loadgen.requests import parse_loads

    try:
        return parse_loads(text)
    except UsageError as error:
        raise argparse.ArgumentTypeError(str(error).removeprefix("--loads: ")) from None


def output_file(text: str) -> Path:
    """`check_output` as the type of an argparse option."""
    path = Path(text)
    try:
        check_output("", path)
    except UsageError as error:
        raise argparse.ArgumentTypeError(str(error).removeprefix(": ")) from None
    return path


def positive(text: str) -> float:
    """The type of an option: a number above 0."""
    with contextlib.suppress(ValueError):
        if 0 < (number := float(text)) < math.inf:
            return number
    raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")


def positive_whole(text: str) -> int:
    """The type of an option: a whole number above 0."""
    with contextlib.suppress(ValueError):
        if (number := int(text)) > 0:
            return number
    raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
