"""The command `trainer explore`. Importing this loads typer only."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from actstore.console.cli_options import Device, TrustAgain, one_of
from trainer.runs.run_options import OtherStore


def explore_command(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run folder.")],
    page: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Write one self-contained HTML file.",
            show_default="serve the page on 127.0.0.1",
        ),
    ] = None,
    beside: Annotated[
        list[str] | None,
        typer.Option(
            metavar="RUN",
            help="Another run to find each latent's nearest in; may be repeated.",
            show_default="none",
        ),
    ] = None,
    store: OtherStore = None,
    split: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="The rows that are looked at: held_out or train.",
            autocompletion=one_of("held_out", "train"),
        ),
    ] = "held_out",
    rows: Annotated[
        str | None,
        typer.Option(
            metavar="COUNT",
            help="Rows per site at most: 50k, 1M.",
            show_default="all of them",
        ),
    ] = None,
    contexts: Annotated[
        int,
        typer.Option(
            metavar="N",
            min=1,
            max=64,
            help="Strongest contexts of each latent.",
        ),
    ] = 12,
    memory: Annotated[
        str,
        typer.Option(metavar="SIZE", help="Memory that may be taken beside the SAEs."),
    ] = "1GiB",
    no_logits: Annotated[
        bool,
        typer.Option(
            "--no-logits",
            help="Leave out the output tokens, which need the language model.",
        ),
    ] = False,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="The language model, if it is not where the harvest found it.",
            show_default="the store's",
        ),
    ] = None,
    out: Annotated[
        str | None,
        typer.Option(
            metavar="FOLDER",
            help="A local folder for the files.",
            show_default="RUN/explorer",
        ),
    ] = None,
    again: Annotated[
        bool, typer.Option("--again", help="Make files again that are there.")
    ] = False,
    port: Annotated[
        int,
        typer.Option(
            metavar="N",
            min=0,
            max=65535,
            help="Port of the page.",
            show_default="any that is free",
        ),
    ] = 0,
    no_open: Annotated[
        bool, typer.Option("--no-open", help="Do not open a browser.")
    ] = False,
    trust_remote_code: TrustAgain = False,
    device: Device = "cpu",
) -> None:
    """Show what each latent of a run fires on, on a page that is served here or a file.

    What it shows is gathered once, into RUN/explorer.
    """
    from rich.console import Console
    from rich.progress import Progress

    from actstore.machine.glibc_malloc import keep_freed_memory
    from trainer.explorer.explore import explore
    from trainer.runs.notes import as_line

    keep_freed_memory()
    console = Console(stderr=True)
    notes: list[str] = []
    with Progress(
        console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        folder = explore(
            run,
            page,
            out=out,
            beside=beside or [],
            store=store,
            split=split,
            rows=rows,
            contexts=contexts,
            memory=memory,
            logits=not no_logits,
            model=model,
            again=again,
            trust_remote_code=trust_remote_code,
            device=device,
            tell=notes.append,
            progress=_Shown(bar),
        )
    for note in notes:
        as_line(note)
    if page is not None:
        typer.echo(f"explorer: {page}")
        return
    _serve(folder, port, no_open)


def _serve(folder: str, port: int, no_open: bool) -> None:
    """Serve the page until Ctrl-C."""
    import webbrowser

    from trainer.explorer.read_explorer import Explorer
    from trainer.explorer.serve import serve

    def started(url: str) -> None:
        typer.echo(f"explorer: {url} (Ctrl-C ends it)")
        if not no_open:
            webbrowser.open(url)

    serve(Explorer(folder), port, started)


class _Shown:
    """Shows what is being done as bars."""

    def __init__(self, bar: Any) -> None:
        self._bar = bar
        self._tasks: dict[str, Any] = {}

    def __call__(self, what: str, done: int, total: int) -> None:
        if what not in self._tasks:
            self._tasks[what] = self._bar.add_task(what, total=total)
        self._bar.update(self._tasks[what], completed=done)
