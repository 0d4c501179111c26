"""The commands `actstore cp`, `push` and `pull`.

They make the same copy. `push` sends a store away: its destination is not a folder of
this machine. `pull` fetches one: its destination is such a folder, by default one of
the store's name here. `cp` takes any two places.

Importing this loads typer only, so that help comes at once.
"""

from __future__ import annotations

from typing import Annotated

import typer

from actstore.console.cli_options import AsJson

Source = Annotated[
    str,
    typer.Argument(metavar="SRC", help="A store or a run: a folder or any fsspec URL."),
]
Sites = Annotated[
    list[str] | None,
    typer.Option(
        metavar="PATTERN",
        help="Only these sites; `*` and `{0..5}` stand for several. Repeatable.",
        show_default="all",
    ),
]
Units = Annotated[
    str | None,
    typer.Option(
        metavar="UNITS",
        help="Only these units, such as 0:100,150; they keep their numbers.",
        show_default="all",
    ),
]
Verify = Annotated[
    bool,
    typer.Option(
        "--verify", help="Also read what is there already; write anew what is wrong."
    ),
]
Threads = Annotated[
    int, typer.Option(metavar="N", min=1, help="Objects copied at a time.")
]


def cp_command(
    src: Source,
    dst: Annotated[
        str, typer.Argument(metavar="DST", help="Where the copy shall lie: any place.")
    ],
    sites: Sites = None,
    units: Units = None,
    verify: Verify = False,
    threads: Threads = 16,
    as_json: AsJson = False,
) -> None:
    """Copy a store or a run between any two places, whole or in part.

    Every object is compared with its digest on the way. The same command goes on with
    a copy that was interrupted.
    """
    _copy(src, dst, sites, units, verify=verify, threads=threads, as_json=as_json)


def push_command(
    src: Source,
    dst: Annotated[
        str,
        typer.Argument(
            metavar="DST",
            help="Where it goes: s3://..., hf://datasets/..., not a folder.",
        ),
    ],
    sites: Sites = None,
    units: Units = None,
    verify: Verify = False,
    threads: Threads = 16,
    as_json: AsJson = False,
) -> None:
    """Copy a store or a run to an object store or to the Hugging Face hub.

    As `actstore cp`, which takes folders too.
    """
    from actstore.errors import SpecError
    from actstore.format.file_systems import local_path

    if local_path(dst) is not None or dst.startswith("file://"):
        raise SpecError(
            f"{dst}: a folder of this machine, and push sends stores away; copy with"
            " `actstore cp`"
        )
    _copy(src, dst, sites, units, verify=verify, threads=threads, as_json=as_json)


def pull_command(
    src: Source,
    dst: Annotated[
        str | None,
        typer.Argument(
            metavar="DST",
            help="The folder that it goes to.",
            show_default="here, by its own name",
        ),
    ] = None,
    sites: Sites = None,
    units: Units = None,
    verify: Verify = False,
    threads: Threads = 16,
    as_json: AsJson = False,
) -> None:
    """Copy a store or a run to a folder of this machine.

    As `actstore cp`, which takes other places too.
    """
    from actstore.catalog.names import is_name, parsed_name
    from actstore.errors import SpecError
    from actstore.format.file_systems import local_path

    if dst is None and is_name(src):
        dst = parsed_name(src).name
    elif dst is None:
        dst = src.rstrip("/").rpartition("/")[2]
        if not dst or ":" in dst or dst in {".", ".."}:
            raise SpecError(f"{src}: it has no name of its own; give the folder too")
    if local_path(dst) is None and not dst.startswith("file://"):
        raise SpecError(
            f"{dst}: no folder of this machine, and pull fetches stores; copy with"
            " `actstore cp` or `actstore push`"
        )
    _copy(src, dst, sites, units, verify=verify, threads=threads, as_json=as_json)


def _copy(
    src: str,
    dst: str,
    sites: list[str] | None,
    units: str | None,
    *,
    verify: bool,
    threads: int,
    as_json: bool,
) -> None:
    """Copy while showing progress, and print what came of it."""
    import time

    from rich.console import Console

    from actstore.machine.stop_signals import Stopped, signals
    from actstore.sharing.copy_display import display
    from actstore.sharing.copy_store import copy

    if any(url.startswith("hf://") for url in (src, dst)):
        from huggingface_hub.utils.tqdm import disable_progress_bars

        disable_progress_bars()  # there is one bar, which is ours
    console = Console(stderr=True)
    began = time.monotonic()
    try:
        with signals(), display(console) as report:
            copied = copy(
                src,
                dst,
                sites=sites or None,
                units=units,
                verify=verify,
                threads=threads,
                progress=report,
            )
    except Stopped as stop:
        console.print(
            "[yellow]interrupted[/]: what is copied is kept; run the same command"
            " again, it goes on from there"
        )
        stop.told = True
        raise
    if as_json:
        import json

        typer.echo(json.dumps(copied._asdict(), indent=1))
        return
    if copied.was_there:
        typer.echo(f"{copied.url}: the copy is there already", err=True)
        return
    seconds = time.monotonic() - began
    n_new = copied.bytes - copied.skipped_bytes
    # As one line, however long the URL is: a script may look for it.
    typer.echo(
        f"{copied.url}: {copied.objects:,} objects, {copied.bytes / 1e6:,.1f} MB;"
        f" copied {n_new / 1e6:,.1f} MB in {seconds:,.1f} s"
        f" ({n_new / 1e6 / max(seconds, 1e-9):,.0f} MB/s)",
        err=True,
    )
