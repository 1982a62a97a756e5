"""The options of `tritonembed-bench compare`, each declared once, and what they come to: a bench and a plan."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from typer import Option

CPU_LOADS, GPU_LOADS = "50x64@4,50x1@16", "50x64@96,50x1@1024,512x64@48"


@dataclass(frozen=True)
class Settings:
    """The options."""

    peers: Annotated[str, Option(help="Names with commas between them; --list shows them.")] = "all"
    model: Annotated[
        Path | None, Option(help="Folder of the model; by default a random bert-6x384, on a GPU bert-base.")
    ] = None
    loads: Annotated[
        str | None, Option(help="TOKENSxSENTENCES@CONCURRENCY, with commas.", show_default="for this machine")
    ] = None
    rates: Annotated[str, Option(help="Offered rates too, open loop: requests/s, with commas.", show_default=False)] = (
        ""
    )
    rate_shape: Annotated[str, Option(help="TOKENSxSENTENCES of --rates.")] = "50x1"
    replicas: Annotated[
        str, Option(help="Counts of replicas too, with commas, under the first load.", show_default=False)
    ] = ""
    rounds: Annotated[int, Option(min=0, help="Of all peers in turn; medians count. 0: the sweep's figures count.")] = 3
    seconds: Annotated[float, Option(min=0.5, help="For each measurement.")] = 6.0
    sweep_seconds: Annotated[float, Option(min=0, help="For each in the sweep over settings; 0: no sweep.")] = 3.0
    settings_from: Annotated[
        Path | None, Option(help="A compare.json: the settings it found best, instead of a sweep.")
    ] = None
    warm_up: Annotated[float, Option(min=0, help="Seconds before each measurement.")] = 2.0
    processes: Annotated[int | None, Option(min=1, help="Of the client.", show_default="for this machine")] = None
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"] | None,
        Option(help="Of all peers.", show_default="float32; GPU: bfloat16"),
    ] = None
    device: Annotated[Literal["cpu", "cuda"] | None, Option(show_default="what is there")] = None
    python: Annotated[
        list[str] | None, Option(help="PEER=PATH, repeatable: that Python has the peer's packages already.")
    ] = None
    install: Annotated[
        bool, Option(None, "--install/--no-install", help="Make virtual environments for the others, or use this one.")
    ] = True
    work_dir: Annotated[Path | None, Option(help="Virtual environments and logs.", show_default="user's cache")] = None
    out: Annotated[Path | None, Option(help="Folder for JSON, Markdown and charts.")] = None
    merge: Annotated[
        list[Path] | None, Option(help="A compare.json, repeatable: one report of them all; nothing is measured.")
    ] = None
    list_peers: Annotated[bool, Option(None, "--list", help="Show the systems that can be compared.")] = False
