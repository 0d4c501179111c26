"""The commands `actstore harvest` and `actstore extend`.

Importing this loads nothing heavy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from actstore.console.cli_options import TrustAgain
from actstore.engines import cli_engine_options as engines
from actstore.harvesting.harvest_options import Device, with_spec
from actstore.harvesting.progress_display import run_with_progress

if TYPE_CHECKING:
    from actstore.harvesting.progress import Report
    from actstore.store.store import Store
    from schemas.harvest import HarvestSpec

Worker = Annotated[
    str | None,
    typer.Option(
        metavar="I/N",
        help="Be the i-th of n workers on this store, such as 3/8.",
        show_default="the only one",
    ),
]
AsJson = Annotated[
    bool, typer.Option("--json", help="Progress as JSON lines on standard output.")
]


@with_spec
def harvest_command(
    spec: Any,
    out: Annotated[
        str,
        typer.Option(
            metavar="URL", help="Where the store goes: a folder or any fsspec URL."
        ),
    ],
    device: Device = "cpu",
    worker: Worker = None,
    as_json: AsJson = False,
    engine: engines.Engine = None,
    workers: engines.Workers = None,
    partition: engines.Partition = None,
    time: engines.Time = None,
    account: engines.Account = None,
) -> None:
    """Run a language model over a corpus and keep its activations.

    The same command resumes an unfinished harvest.
    """

    def work(report: Report) -> Store:
        from actstore.harvesting.harvest import harvest

        return harvest(
            spec,
            out,
            device=device,
            worker=worker,
            engine=engine,
            workers=workers,
            slurm=engines.slurm_options(partition, time, account),
            progress=report,
        )

    say_if_slow(spec, device)
    note = rounding(spec.tokens, spec.context)
    run_with_progress(work, as_json=as_json, note=note)


def extend_command(
    url: Annotated[
        str, typer.Argument(metavar="URL", help="A finished store, or its name.")
    ],
    sites: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SITES",
            help="More sites, on the tokens and rows that the store has.",
            show_default="none",
        ),
    ] = None,
    tokens: Annotated[
        str | None,
        typer.Option(
            metavar="COUNT",
            help="More tokens of the same corpus, at the sites it has.",
            show_default="none",
        ),
    ] = None,
    trust_remote_code: TrustAgain = False,
    device: Device = "cpu",
    worker: Worker = None,
    as_json: AsJson = False,
) -> None:
    """Add sites or tokens to a finished store; it stays readable meanwhile.

    The same command resumes.
    """
    from actstore.console.counts import parse_count
    from actstore.store.open_store import open as open_store

    n_tokens = None
    note = None
    if tokens is not None:
        n_tokens = parse_count(tokens)
        note = rounding(n_tokens, open_store(url).layout.context)

    def work(report: Report) -> Store:
        from actstore.harvesting.extend import extend

        return extend(
            url,
            sites=tuple(sites) if sites else None,
            tokens=n_tokens,
            trust_remote_code=trust_remote_code,
            device=device,
            worker=worker,
            progress=report,
        )

    run_with_progress(work, as_json=as_json, note=note)


def say_if_slow(spec: HarvestSpec, device: str) -> None:
    """Tell the user where the model would be faster in float32."""
    from actstore.machine.half_precision import slow_here

    dtypes = {"--model-dtype": spec.model.dtype, "--autocast": spec.autocast}
    for option, dtype in dtypes.items():
        sentence = slow_here(dtype, device)
        if sentence is not None:
            typer.echo(f"note: {option} {dtype}: {sentence}", err=True)


def rounding(tokens: int, context: int) -> str | None:
    """Return a sentence that says what is run, where that is more than what was asked.

    A harvest runs whole contexts. None where the tokens are a whole number of them.
    """
    contexts = -(-tokens // context)  # rounded up
    rounded = contexts * context
    if rounded == tokens:
        return None
    return (
        f"{rounded:,} tokens in {contexts:,} contexts of {context}"
        f" ({tokens:,} were asked)"
    )
