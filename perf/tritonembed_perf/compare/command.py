"""The options of `tritonembed-bench compare`."""

from pathlib import Path
from typing import Annotated

import typer

from tritonembed_perf.failures import one_line_errors


def compare(
    peers: Annotated[str, typer.Option("--peers", help="Names with commas between them; --list shows them.")] = "all",
    model: Annotated[
        Path | None,
        typer.Option("--model", help="Folder of the model; by default a random bert-6x384, on a GPU bert-base."),
    ] = None,
    loads: Annotated[
        str | None,
        typer.Option("--loads", help="TOKENSxSENTENCES@CONCURRENCY, with commas.", show_default="for this machine"),
    ] = None,
    rates: Annotated[
        str | None, typer.Option("--rates", help="Offered rates too, open loop: requests/s, with commas.")
    ] = None,
    rate_shape: Annotated[str, typer.Option("--rate-shape", help="TOKENSxSENTENCES of --rates.")] = "50x1",
    replicas: Annotated[
        str | None, typer.Option("--replicas", help="Counts of replicas too, with commas, under the first load.")
    ] = None,
    rounds: Annotated[
        int, typer.Option("--rounds", min=0, help="Of all peers in turn; medians count. 0: the sweep's figures count.")
    ] = 3,
    seconds: Annotated[float, typer.Option("--seconds", min=0.5, help="For each measurement.")] = 6.0,
    sweep_seconds: Annotated[
        float, typer.Option("--sweep-seconds", min=0, help="For each in the sweep over settings; 0: no sweep.")
    ] = 3.0,
    settings_from: Annotated[
        Path | None,
        typer.Option("--settings-from", help="A compare.json: the settings it found best, instead of a sweep."),
    ] = None,
    warm_up: Annotated[float, typer.Option("--warm-up", min=0, help="Seconds before each measurement.")] = 2.0,
    processes: Annotated[
        int | None, typer.Option("--processes", min=1, help="Of the client.", show_default="for this machine")
    ] = None,
    dtype: Annotated[
        str | None, typer.Option("--dtype", help="Of all peers.", show_default="float32; GPU: bfloat16")
    ] = None,
    device: Annotated[str | None, typer.Option("--device", help="cpu or cuda.", show_default="what is there")] = None,
    python: Annotated[
        list[str] | None,
        typer.Option("--python", help="PEER=PATH, repeatable: that Python has the peer's packages already."),
    ] = None,
    install: Annotated[
        bool, typer.Option("--install/--no-install", help="Make virtual environments for the others, or use this one.")
    ] = True,
    work_dir: Annotated[
        Path | None, typer.Option("--work-dir", help="Virtual environments and logs.", show_default="user's cache")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Folder for JSON, Markdown and charts.")] = None,
    merge: Annotated[
        list[Path] | None,
        typer.Option("--merge", help="A compare.json, repeatable: one report of them all; nothing is measured."),
    ] = None,
    list_peers: Annotated[bool, typer.Option("--list", help="Show the systems that can be compared.")] = False,
) -> None:
    """Measure this project and its peers on this machine: same model, same loads, one after the other.

    Each peer is swept over its main settings first, and measured with its best. Exit code 1: one of them answered
    wrongly.
    """
    options = dict(locals())
    with one_line_errors():
        from tritonembed_perf.compare.peers import all_peers
        from tritonembed_perf.compare.reports import merge_reports, publish, read_report
        from tritonembed_perf.compare.session import compare_peers

        if list_peers:
            for peer in all_peers().values():
                print(f"{peer.name}  {peer.note}".rstrip())
        elif merge:
            publish(*merge_reports([read_report("--merge", path) for path in merge]), out)
        else:
            compare_peers(options)
