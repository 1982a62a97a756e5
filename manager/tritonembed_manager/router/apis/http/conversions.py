"""The conversions of HTTP bodies, by kind, and the program of the process that converts large bodies."""

import sys

from tritonembed_manager.router.apis.http import cohere, kserve, openai, rerank, tei
from tritonembed_manager.router.apis.http.converter import Conversions, Converter, convert_for_another

CONVERSIONS: Conversions = {
    "openai": openai.convert,
    "tei": tei.convert,
    "tei_tokenize": tei.convert_tokenize,
    "tei_decode": tei.convert_decode,
    "cohere": cohere.convert,
    "kserve": kserve.convert,
    "raw": kserve.convert_raw,
    **rerank.CONVERSIONS,
}
COMMAND: tuple[str, ...] = (
    sys.executable,
    "-c",
    # Nothing is imported from the current folder.
    "import sys; sys.path[:] = [path for path in sys.path if path]; "
    f"from {__name__} import main; main(*map(int, sys.argv[1:]))",
)


def main(*arguments: int) -> None:
    """Run the separate process. The arguments are those of `convert_for_another`."""
    convert_for_another(CONVERSIONS, *arguments)


def new_converter() -> Converter:
    """A converter with all conversions."""
    return Converter(CONVERSIONS, COMMAND)
