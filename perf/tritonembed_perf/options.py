"""What the command lines of scripts share."""

import argparse
import functools
import math
import sys
from collections.abc import Callable
from pathlib import Path

from tritonembed_manager.tune.loadgen.load import LoadError
from tritonembed_manager.tune.loads import LoadShape
from tritonembed_perf.failures import UsageError
from tritonembed_perf.reports import check_output
from tritonembed_perf.signals import exit_on_sigterm


def script(main: Callable[[], None]) -> Callable[[], None]:
    """Of a script's `main`: an expected error ends it with one line, SIGTERM stops what it has started."""

    @functools.wraps(main)
    def run() -> None:
        try:
            with exit_on_sigterm():
                main()
        except LoadError as error:
            sys.exit(f"error: {error}")

    return run


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
    """A file that can be written, as the type of an argparse option."""
    try:
        check_output("", Path(text))
    except UsageError as error:
        raise argparse.ArgumentTypeError(str(error).removeprefix(": ")) from None
    return Path(text)


def positive(text: str) -> float:
    """The type of an option: a number above 0. Raises ValueError, which argparse shows with this function's name."""
    if not 0 < (number := float(text)) < math.inf:
        raise ValueError
    return number


def positive_whole(text: str) -> int:
    """The type of an option: a whole number above 0. Raises ValueError."""
    if (number := int(text)) < 1:
        raise ValueError
    return number
