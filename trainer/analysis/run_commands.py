"""The commands `trainer analyze ...` over runs and stores.

Importing this loads typer only.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

from actstore.console.cli_options import Command, Device
from trainer.analysis.show_evidence import AsJson, Out, show
from trainer.runs.run_options import OtherStore

if TYPE_CHECKING:
    from actstore.store.store import Store
    from trainer.runs.run_data import RunData

Runs = Annotated[
    list[str], typer.Argument(metavar="RUN...", help="Folders of evaluated runs.")
]
AliveOnly = Annotated[
    bool,
    typer.Option(
        "--alive", help="Leave out latents that never fired on the rows evaluated."
    ),
]
Seed = Annotated[
    int, typer.Option(metavar="N", min=0, help="Seed of the pairs that are drawn.")
]


def norms_command(
    store: Annotated[str, typer.Argument(metavar="STORE", help="Path or URL.")],
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """Mean L2 norm of each layer's rows, with the 5 to 95 % band."""
    from actstore.store.norms_of_sites import compute_norms
    from actstore.store.open_store import open as open_store

    show(compute_norms(open_store(store)), out, as_json)


def fronts_command(runs: Runs, out: Out = None, as_json: AsJson = False) -> None:
    """FVU against L0, by layer, rescaling, learning rate and kind."""
    from trainer.analysis.fronts import compute_fronts

    show(compute_fronts(_read(runs)), out, as_json)


def by_layer_command(runs: Runs, out: Out = None, as_json: AsJson = False) -> None:
    """Each metric by layer, as the mean over seeds with its 95 % interval."""
    from trainer.analysis.by_layer import compute_by_layer

    show(compute_by_layer(_read(runs)), out, as_json)


def matched_command(
    runs: Runs,
    l0: Annotated[
        list[float] | None,
        typer.Option(
            metavar="X",
            help="An L0 to compare at; may be given again.",
            show_default="five that all fronts reach",
        ),
    ] = None,
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """Compare kinds or settings at the same L0, paired by seed.

    All are compared with the kind or setting of the first run.
    """
    from trainer.analysis.matched import compute_matched

    show(compute_matched(_read(runs), l0 or None), out, as_json)


def norm_and_l0_command(
    runs: Runs, store: OtherStore = None, out: Out = None, as_json: AsJson = False
) -> None:
    """L0 of each layer against the mean norm of its input, with slope and p-value."""
    from trainer.analysis.norm_and_l0 import compute_norm_and_l0

    read = _read(runs)
    opened = None if store is None else _store(read, store)
    show(compute_norm_and_l0(read, opened), out, as_json)


def l1_and_l0_command(runs: Runs, out: Out = None, as_json: AsJson = False) -> None:
    """How far L1 agrees with L0, by layer."""
    from trainer.analysis.l1_and_l0 import compute_l1_and_l0

    show(compute_l1_and_l0(_read(runs)), out, as_json)


def geometry_command(
    runs: Runs,
    seed: Seed = 0,
    alive: AliveOnly = False,
    device: Device = "cpu",
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """Pillar, direction and correction vectors; norms and cosines of the decoder.

    With --out the histograms of norms and of cosines are written, too.
    """
    from trainer.analysis.decoder_cosines import compute_decoder_cosines
    from trainer.analysis.decoder_norms import compute_decoder_norms
    from trainer.analysis.evidence import write_evidence
    from trainer.analysis.geometry import compute_geometry

    read = _read(runs)
    table = compute_geometry(read, seed=seed, alive_only=alive, device=device)
    if out is not None:
        write_evidence(compute_decoder_norms(read, alive_only=alive), out)
        cosines = compute_decoder_cosines(
            read, seed=seed, alive_only=alive, device=device
        )
        write_evidence(cosines, out)
    show(table, out, as_json)


def densities_command(runs: Runs, out: Out = None, as_json: AsJson = False) -> None:
    """Histogram of the latents' log10 density."""
    from trainer.analysis.densities import compute_densities

    show(compute_densities(_read(runs)), out, as_json)


def spread_command(
    runs: Runs,
    variance: Annotated[
        bool,
        typer.Option(
            "--variance", help="Also variance over layers, from rows of the store."
        ),
    ] = False,
    store: OtherStore = None,
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """How the firings of each latent are spread over layers."""
    from trainer.analysis.spread_of_latents import compute_spread
    from trainer.errors import TrainerError

    if store is not None and not variance:
        raise TrainerError("--store is of --variance; give that too, or leave it out")
    read = _read(runs)
    opened = _store(read, store) if variance else None
    show(compute_spread(read, opened), out, as_json)


def curves_command(runs: Runs, out: Out = None, as_json: AsJson = False) -> None:
    """FVU, L0, dead latents and learning rate over training, from the journals."""
    from trainer.analysis.curves import compute_curves

    show(compute_curves(_read(runs)), out, as_json)


def resampling_command(runs: Runs, out: Out = None, as_json: AsJson = False) -> None:
    """Runs that resample dead latents beside runs that do not."""
    from trainer.analysis.resampling import compute_resampling

    show(compute_resampling(_read(runs)), out, as_json)


COMMANDS: dict[str, Callable[..., None]] = {
    "norms": norms_command,
    "fronts": fronts_command,
    "by-layer": by_layer_command,
    "matched": matched_command,
    "norm-and-l0": norm_and_l0_command,
    "l1-and-l0": l1_and_l0_command,
    "geometry": geometry_command,
    "densities": densities_command,
    "spread": spread_command,
    "curves": curves_command,
    "resampling": resampling_command,
}


def add_to(analyze: typer.Typer) -> None:
    """Add the commands to the app `trainer analyze`."""
    for name, command in COMMANDS.items():
        analyze.command(name, cls=Command)(command)


def _read(runs: list[str]) -> list[RunData]:
    from trainer.analysis.seed_groups import read_runs

    return read_runs(runs)


def _store(runs: list[RunData], given: str | None) -> Store:
    """Return the store that is given, or that of the first run."""
    from trainer.runs.run_store import store_of

    opened = store_of(runs[0].url, runs[0].record, given)
    if opened.note is not None:
        typer.echo(f"note: {opened.note}", err=True)
    return opened.store
