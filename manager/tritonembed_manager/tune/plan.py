"""The options of `tune`, resolved and checked before anything starts."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tritonembed_engine.settings import MOST_BATCH_TOKENS
from tritonembed_manager.errors import StartError
from tritonembed_manager.server.machine import Device
from tritonembed_manager.server.settings import RenderSettings
from tritonembed_manager.tune.loads import RUNS, WARM_UP_S, LoadShape, default_load, parse_load, second_load
from tritonembed_manager.tune.server import ServerOptions
from tritonembed_manager.tune.trials import Candidate, Space

if TYPE_CHECKING:
    from tritonembed_engine.model.files import ModelFiles

TOKENIZERS: dict[Device, Sequence[int]] = {"cpu": (1, 2), "cuda": (1, 2, 4, 8)}
REPLICAS: dict[Device, Sequence[int]] = {"cpu": (1, 2), "cuda": (1, 2, 3)}
BATCH_TOKENS_ON_A_GPU = (8192, 16384, 32768)
MOST_INSTANCES = 1024
"""The most Python processes of a server: a larger number is a typing error."""

START_S: dict[Device, float] = {"cpu": 15, "cuda": 60}
"""About the seconds until a server is ready. On a GPU, CUDA graphs alone may take 30 s."""


@dataclass(frozen=True, kw_only=True)
class TuneSettings:
    """The command line. Lists are still text; None if not given."""

    out: Path
    settings: RenderSettings
    """The settings that all candidates share, and the default numbers of tokenizers and replicas."""
    server: ServerOptions
    tokenizer_instances: str | None
    replicas: str | None
    max_batch_tokens: str | None
    loads: Sequence[str]
    second_load: str | None
    seconds: float
    budget_minutes: float
    force: bool


@dataclass(frozen=True)
class TunePlan:
    """The candidates to try, the first of them, and the loads."""

    space: Space
    defaults: Candidate
    """Where the search starts: the settings that `render` would write, or the closest that the lists allow."""
    default_batch_tokens: int
    loads: list[LoadShape]
    second: LoadShape
    limited: bool = False
    """Whether the lists exclude the settings that `render` would write."""


def make_plan(options: TuneSettings, files: "ModelFiles", default_batch_tokens: int) -> TunePlan:
    """Raises StartError for options that contradict each other, the model or a server's limits.

    default_batch_tokens: the engine's for this model and device.
    """
    device, longest = options.settings.device, files.max_length
    budgets = parse_values("--max-batch-tokens", options.max_batch_tokens, MOST_BATCH_TOKENS)
    if budgets and budgets[0] < longest:
        raise StartError(f"--max-batch-tokens {budgets[0]}: the longest text of this model has {longest} tokens")
    space = Space(
        parse_values("--tokenizer-instances", options.tokenizer_instances, MOST_INSTANCES)
        or _with(TOKENIZERS[device], options.settings.tokenizer_instances),
        parse_values("--replicas", options.replicas, MOST_INSTANCES) or REPLICAS[device],
        budgets or default_budgets(device, default_batch_tokens, longest),
    )
    if not space.has_choice:
        raise StartError(
            "nothing to choose: --tokenizer-instances, --replicas and --max-batch-tokens have one value each"
        )
    plain = Candidate(options.settings.tokenizer_instances, options.settings.replicas, default_batch_tokens)
    loads = [parse_load("--load", part) for text in options.loads for part in text.split(",")]
    loads = list(dict.fromkeys(loads)) or [default_load(device, longest)]
    for load in loads:
        load.check("--load", longest)
    _check_time(options, len(loads))
    start = space.nearest(plain)
    return TunePlan(space, start, default_batch_tokens, loads, _second(options, loads, longest), start != plain)


def _check_time(options: TuneSettings, loads: int) -> None:
    needed = START_S[options.settings.device] + RUNS * loads * (options.seconds + WARM_UP_S)
    if options.budget_minutes * 60 < needed:
        raise StartError(
            f"--budget-minutes {options.budget_minutes:g}: one server, its start and its runs, takes about "
            f"{needed / 60:.1f} minutes"
        )


def _second(options: TuneSettings, loads: Sequence[LoadShape], longest: int) -> LoadShape:
    if options.second_load is None:
        return second_load(loads, options.settings.device, longest)
    second = parse_load("--second-load", options.second_load)
    second.check("--second-load", longest)
    if second in loads:
        raise StartError(f"--second-load {second}: --load names it too, and a choice is to be checked on another load")
    return second


def default_budgets(device: Device, default: int, longest: int) -> Sequence[int]:
    """Batch budgets to try: the default and those around it that hold the longest text."""
    around = BATCH_TOKENS_ON_A_GPU if device == "cuda" else (default // 2, default, default * 2)
    return _with([budget for budget in around if longest <= budget <= MOST_BATCH_TOKENS], default)


def parse_values(option: str, text: str | None, most: int) -> list[int]:
    """`1,2,4` as numbers up to `most`, ascending, each once; none for None. Raises StartError for anything else."""
    if text is None:
        return []
    try:
        values = sorted({int(part) for part in text.split(",")})
    except ValueError:
        values = [0]
    if values[0] < 1:
        raise StartError(f"{option}: {text!r} is not a list of numbers above 0, such as 1,2,4")
    if values[-1] > most:
        raise StartError(f"{option} {values[-1]}: at most {most} can be tried")
    return values


def _with(values: Sequence[int], more: int) -> Sequence[int]:
    return sorted({*values, more})
