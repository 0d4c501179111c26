"""The command `trainer serve`. Importing this loads typer only."""

from __future__ import annotations

from typing import Annotated

import typer

from actstore.console.cli_options import one_of


def serve_command(
    *,
    runs: Annotated[
        str,
        typer.Option(metavar="URL", help="The folder that gets a folder for each run."),
    ],
    state: Annotated[
        str | None,
        typer.Option(
            metavar="DIR",
            help="A folder on a local disk for the queue and the tokens.",
            show_default="RUNS/.service; your own for that URL, if RUNS is elsewhere",
        ),
    ] = None,
    stores: Annotated[
        list[str] | None,
        typer.Option(
            metavar="URL",
            help="Where stores may be read from: a folder or URL; may be repeated.",
            show_default="this folder, on the loopback; else to be given",
        ),
    ] = None,
    host: Annotated[
        str, typer.Option(metavar="ADDRESS", help="The address to listen at.")
    ] = "127.0.0.1",
    port: Annotated[
        int,
        typer.Option(
            metavar="N", min=0, max=65535, help="The port; 0 for any that is free."
        ),
    ] = 8321,
    tls_cert: Annotated[
        str | None,
        typer.Option(
            metavar="FILE", help="Certificate for TLS.", show_default="no TLS"
        ),
    ] = None,
    tls_key: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Its key.", show_default="no TLS"),
    ] = None,
    behind_proxy: Annotated[
        bool,
        typer.Option(
            "--behind-proxy", help="Answer by way of a proxy only, which has TLS."
        ),
    ] = False,
    proxy: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ADDRESS",
            help="The proxy's address or network; may be repeated.",
            show_default="this machine and private networks",
        ),
    ] = None,
    slots: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            help="How many passes at a time: that many GPUs, or parts of the cores.",
            show_default="all GPUs; else one for all cores",
        ),
    ] = None,
    device: Annotated[
        str,
        typer.Option(
            metavar="DEVICE",
            help="Where passes are trained: auto, cpu or cuda.",
            autocompletion=one_of("auto", "cpu", "cuda"),
        ),
    ] = "auto",
    executor: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="What places passes on machines: local, ray[:ADDRESS] or slurm.",
            autocompletion=one_of("local", "ray", "slurm"),
        ),
    ] = "local",
) -> None:
    """Serve an API and a page by which a team trains SAEs and sees what was trained.

    Ctrl-C ends it: passes under way save, and go on when it is started again.
    """
    from trainer.service.serve_options import serving_from
    from trainer.service.serving import check_installed, log_to_stderr, serve

    check_installed()
    serving = serving_from(
        runs=runs,
        state=state,
        stores=stores or (),
        host=host,
        port=port,
        tls_cert=tls_cert,
        tls_key=tls_key,
        behind_proxy=behind_proxy,
        proxies=proxy or (),
        n_slots=slots,
        device=device,
        executor=executor,
    )
    where = f"--state {state}" if state is not None else f"--runs {runs}"
    made_by = f"trainer token make {where} --user NAME --role admin"

    def started(url: str, token: str | None) -> None:
        # Behind the #: browsers send and log nothing of it.
        key = "" if token is None else f"login#token={token}"
        typer.echo(f"service: {url}{key}")
        typer.echo(f"runs: {serving.places.runs}")
        typer.echo(f"stores: {', '.join(serving.places.stores)}")

    log_to_stderr()
    serve(serving, made_by, started)
