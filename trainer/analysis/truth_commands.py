"""Commands of `trainer analyze` about known features, and features across layers.

Importing this loads typer only.
"""

from __future__ import annotations

from typing import Annotated

import typer

from actstore.console.cli_options import Command, Device
from trainer.analysis.show_evidence import AsJson, Out, show
from trainer.runs.run_options import OtherStore

Runs = Annotated[list[str], typer.Argument(metavar="RUN...", help="Run folders.")]
Truth = Annotated[
    str | None,
    typer.Option(
        metavar="STORE",
        help="A store of toy data whose true features to use.",
        show_default="each run's own store",
    ),
]
Seed = Annotated[
    int, typer.Option(metavar="N", min=0, help="Seed of what is drawn by chance.")
]
Quick = Annotated[
    bool, typer.Option("--quick", help="A small version of it, in a second or two.")
]


def add_to(analyze: typer.Typer) -> None:
    """Add the commands of this module to `trainer analyze`."""
    analyze.command("mmcs", cls=Command)(mmcs_command)
    analyze.command("size-and-sparsity", cls=Command)(size_and_sparsity_command)
    analyze.command("recovery", cls=Command)(recovery_command)
    analyze.command("trajectories", cls=Command)(trajectories_command)
    analyze.command("layers", cls=Command)(layers_command)
    analyze.command("homogeneity", cls=Command)(homogeneity_command)
    analyze.command("deciding-layers", cls=Command)(deciding_layers_command)


def mmcs_command(
    runs: Runs,
    truth: Truth = None,
    seed: Seed = 0,
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """MMCS: against true features on toy data, else against the next larger run."""
    from trainer.analysis.compare_mmcs import compute_mmcs

    show(compute_mmcs(runs, truth=truth, seed=seed), out, as_json)


def size_and_sparsity_command(
    toy: Annotated[
        list[str] | None,
        typer.Option(metavar="RUN", help="A run on toy data. May be given again."),
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(metavar="RUN", help="A run on a model's activations. Again, too."),
    ] = None,
    truth: Truth = None,
    seed: Seed = 0,
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """Heat maps over dictionary size and sparsity: MMCS, dead latents, FVU, L0.

    Evaluated runs of toy data and of a language model are drawn on the same axes.
    """
    from trainer.analysis.size_and_sparsity import compute_size_and_sparsity

    table = compute_size_and_sparsity(toy or [], model or [], truth=truth, seed=seed)
    show(table, out, as_json)


def recovery_command(
    runs: Runs,
    truth: Truth = None,
    seed: Seed = 0,
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """MMCS at the checkpoints of runs on toy data, by how their dictionaries began."""
    from trainer.analysis.recovery_over_steps import compute_recovery_over_steps

    table = compute_recovery_over_steps(runs, truth=truth, seed=seed)
    show(table, out, as_json)


def trajectories_command(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run of several layers.")],
    latents: Annotated[
        str | None,
        typer.Option(
            metavar="N,N,...",
            help="Numbers of latents.",
            show_default="those of widest spread",
        ),
    ] = None,
    n_latents: Annotated[
        int, typer.Option(metavar="N", min=1, help="How many, where none is named.")
    ] = 6,
    store: OtherStore = None,
    rows: Annotated[
        str, typer.Option(metavar="COUNT", help="Tokens to look at: 20k.")
    ] = "20k",
    seed: Seed = 0,
    device: Device = "cpu",
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """Activations of latents over the layers of the same token."""
    from trainer.analysis.trajectories import compute_trajectories

    table = compute_trajectories(
        run,
        latents=_numbers("--latents", latents),
        n_latents=n_latents,
        store=store,
        rows=rows,
        seed=seed,
        device=device,
    )
    show(table, out, as_json)


def layers_command(
    runs: Runs,
    threshold: Annotated[
        float, typer.Option(metavar="COSINE", help="Lowest cosine of a match.")
    ] = 0.7,
    seed: Seed = 0,
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """Match decoders of adjacent layers, one run each; how long chains live."""
    from trainer.analysis.layer_matches import (
        compute_layer_chains,
        compute_layer_matches,
        match_layers,
    )

    found = match_layers(runs, threshold=threshold, seed=seed)
    show(compute_layer_matches(found), out, as_json)
    show(compute_layer_chains(found), out, as_json)


def homogeneity_command(
    neurons: Annotated[
        int | None,
        typer.Option(
            metavar="N", min=2, help="Width of the layer.", show_default="100"
        ),
    ] = None,
    seeds: Annotated[
        int, typer.Option(metavar="N", min=1, help="How often all is done.")
    ] = 3,
    seed: Seed = 0,
    quick: Quick = False,
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """How linear a layer answers to a direction, by how many neurons it is spread over.

    An experiment of its own; it needs no store and no run.
    """
    from trainer.analysis.capacity import compute_capacity
    from trainer.analysis.homogeneity import (
        QUICK,
        HomogeneitySpec,
        compute_interference,
    )
    from trainer.analysis.response_curves import compute_response_curves

    spec = QUICK if quick else HomogeneitySpec()
    spec = spec._replace(seeds=seeds, seed=seed)
    if neurons is not None:
        narrow = tuple(one for one in spec.spreads if one < neurons)
        spec = spec._replace(neurons=neurons, spreads=(*narrow, neurons))
    show(compute_response_curves(spec.neurons), out, as_json)
    interference = compute_interference(spec)
    show(interference, out, as_json)
    show(compute_capacity(interference, spec), out, as_json)


def deciding_layers_command(
    datapoints: Annotated[
        str | None,
        typer.Option(
            metavar="N,N,...",
            help="Datapoints that networks memorise.",
            show_default="64,256,1024",
        ),
    ] = None,
    layers: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="MLP layers.", show_default="8"),
    ] = None,
    width: Annotated[
        int | None,
        typer.Option(metavar="N", min=2, help="Width.", show_default="64"),
    ] = None,
    seeds: Annotated[
        int, typer.Option(metavar="N", min=1, help="How often all is done.")
    ] = 3,
    seed: Seed = 0,
    quick: Quick = False,
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """At which layer an MLP-only residual network decides each datapoint.

    An experiment of its own; it needs no store and no run.
    """
    from trainer.analysis import decided_by_layer
    from trainer.analysis.deciding_layers import QUICK, DecidingSpec, memorise_all

    spec = QUICK if quick else DecidingSpec()
    spec = spec._replace(
        seeds=seeds,
        seed=seed,
        datapoints=_numbers("--datapoints", datapoints) or spec.datapoints,
        layers=spec.layers if layers is None else layers,
        width=spec.width if width is None else width,
    )
    trained = memorise_all(spec)
    show(decided_by_layer.compute_decided_by_layer(trained), out, as_json)
    show(decided_by_layer.compute_loss_trajectories(trained), out, as_json)


def _numbers(option: str, text: str | None) -> tuple[int, ...]:
    """Return whole numbers from `3,17`; none from None.

    Raises:
        SpecError: It is something else.
    """
    from actstore.errors import SpecError

    try:
        return tuple(int(part) for part in (text or "").split(",") if part.strip())
    except ValueError:
        raise SpecError(
            f"{option}: wanted whole numbers with commas, such as 3,17; got {text!r}"
        ) from None
