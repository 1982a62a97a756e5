"""vLLM engine arguments as environment variables: TRITONEMBED_MAX_MODEL_LEN=512 for --max-model-len 512."""

from collections.abc import Iterable, Mapping

PREFIX = "TRITONEMBED_"
_CLIENT = PREFIX + "CLIENT_"
_YES, _NO = ("1", "true", "yes", "on"), ("0", "false", "no", "off")


def variable(option: str) -> str:
    """The variable of an option: `--max-model-len` is TRITONEMBED_MAX_MODEL_LEN."""
    return PREFIX + option.removeprefix("--").replace("-", "_").upper()


def candidates(environment: Mapping[str, str], own_options: Iterable[str]) -> dict[str, str]:
    """The variables that may be vLLM's: those that no option of the running command reads. Empty ones don't count.

    Only vLLM knows which of them it takes. The others belong to other commands, and are no error.
    """
    own = {variable(option) for option in own_options}
    return {
        name: value
        for name, value in environment.items()
        if value and name.startswith(PREFIX) and not name.startswith(_CLIENT) and name not in own
    }


def as_arguments(option: str, value: str, *, is_switch: bool, is_list: bool) -> list[str]:
    """The words that give an option this value on the command line. is_switch: it takes none there.

    Raises ValueError, which names the variable, for a switch that is neither on nor off.
    """
    if is_switch:
        if value.lower() in _YES:
            return [option]
        if value.lower() in _NO:
            return ["--no-" + option.removeprefix("--")]
        raise ValueError(f"{variable(option)} is neither true nor false")
    return [option, *value.split()] if is_list else [f"{option}={value}"]
