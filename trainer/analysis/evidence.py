"""Keeps what analyses found: a table as JSON, Parquet and CSV, its figures as SVG.

A folder of evidence holds for each table NAME.json, NAME.parquet, NAME.csv, and an SVG
for each of its figures. `trainer report --with FOLDER` shows it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module

from actstore.errors import SpecError
from actstore.figures.draw_svg import draw
from actstore.figures.figure import Drawing
from actstore.figures.table import MOST_BYTES, Table
from actstore.format.storage import Storage
from trainer.errors import RunError

# From the name of a table to the function that draws it. Pages show tables in this
# order.
PLOTS: dict[str, str] = {
    "norms": "actstore.store.norms_of_sites:plot_norms",
    "fronts": "trainer.analysis.fronts:plot_fronts",
    "by_layer": "trainer.analysis.by_layer:plot_by_layer",
    "matched": "trainer.analysis.matched:plot_matched",
    "norm_and_l0": "trainer.analysis.norm_and_l0:plot_norm_and_l0",
    "l1_and_l0": "trainer.analysis.l1_and_l0:plot_l1_and_l0",
    "geometry": "trainer.analysis.geometry:plot_geometry",
    "decoder_norms": "trainer.analysis.decoder_norms:plot_decoder_norms",
    "decoder_cosines": "trainer.analysis.decoder_cosines:plot_decoder_cosines",
    "curves": "trainer.analysis.curves:plot_curves",
    "resampling": "trainer.analysis.resampling:plot_resampling",
    "densities": "trainer.analysis.densities:plot_densities",
    "spread": "trainer.analysis.spread_of_latents:plot_spread",
    "sae_table": "trainer.analysis.sae_table:plot_sae_table",
    "stitch_compare": "trainer.stitching.compare:plot_stitch_compare",
    "stitch_pairs": "trainer.stitching.pairs_of_runs:plot_stitch_pairs",
    "stitch_add": "trainer.stitching.add:plot_stitch_add",
    "stitch_classes": "trainer.stitching.classes:plot_stitch_classes",
    "stitch_cumulative": "trainer.stitching.cumulative:plot_stitch_cumulative",
    "stitch_swap": "trainer.stitching.swap:plot_stitch_swap",
    "stitch_interpolate": "trainer.stitching.interpolate:plot_stitch_interpolate",
    "stitch_frankenstein": "trainer.stitching.frankenstein:plot_stitch_frankenstein",
    "inference_time": "trainer.stitching.optimise:plot_inference_time",
    "stitch_cooccurrence": "trainer.stitching.cooccurrence:plot_stitch_cooccurrence",
    "mmcs": "trainer.analysis.compare_mmcs:plot_mmcs",
    "size_and_sparsity": "trainer.analysis.size_and_sparsity:plot_size_and_sparsity",
    "recovery_over_steps": (
        "trainer.analysis.recovery_over_steps:plot_recovery_over_steps"
    ),
    "trajectories": "trainer.analysis.trajectories:plot_trajectories",
    "layer_matches": "trainer.analysis.layer_matches:plot_layer_matches",
    "layer_chains": "trainer.analysis.layer_matches:plot_layer_chains",
    "response_curves": "trainer.analysis.response_curves:plot_response_curves",
    "interference": "trainer.analysis.response_curves:plot_interference",
    "capacity": "trainer.analysis.response_curves:plot_capacity",
    "decided_by_layer": "trainer.analysis.decided_by_layer:plot_decided_by_layer",
    "loss_trajectories": "trainer.analysis.decided_by_layer:plot_loss_trajectories",
    "over_training": "trainer.analysis.over_training:plot_over_training",
    "density_over_training": (
        "trainer.analysis.density_over_training:plot_density_over_training"
    ),
}


def figures_of(table: Table) -> tuple[Drawing, ...]:
    """Return the figures of a table; none where its analysis draws none.

    Raises:
        SpecError: It does not have the columns of the analysis that it is named after.
    """
    path = PLOTS.get(table.name)
    if path is None:
        return ()
    module, _, function = path.partition(":")
    plot: Callable[[Table], Sequence[Drawing]] = getattr(
        import_module(module), function
    )
    try:
        return tuple(plot(table))
    except (KeyError, TypeError, ValueError, IndexError) as error:
        # A table from someone else, or of an earlier version.
        raise SpecError(
            f"the table {table.name}: it cannot be drawn ({error}); run its analysis"
            " again"
        ) from error


def write_evidence(table: Table, folder: str) -> None:
    """Write a table and its figures into a folder; the JSON comes last."""
    storage = Storage(folder)
    for figure in figures_of(table):
        storage.put(f"{figure.name}.svg", draw(figure).encode())
    storage.put(f"{table.name}.parquet", table.to_parquet())
    storage.put(f"{table.name}.csv", table.to_csv().encode())
    storage.put(f"{table.name}.json", table.to_json().encode())


def read_evidence(folder: str) -> list[Table]:
    """Return the tables of a folder, in the order of pages.

    Raises:
        RunError: There is none.
        SpecError: A file is no table.
    """
    storage = Storage(folder)
    names = [name for name in storage.list("") if name.endswith(".json")]
    tables = []
    for name in names:
        if "/" in name:
            continue
        data = storage.read(name, MOST_BYTES)
        tables.append(Table.from_json(data, f"{folder}/{name}"))
    if not tables:
        raise RunError(
            f"{folder}: wanted a folder that `trainer analyze ... --out` wrote, with"
            " NAME.json for each table; there is none"
        )
    order = list(PLOTS)
    last = len(order)
    return sorted(
        tables,
        key=lambda table: (
            order.index(table.name) if table.name in order else last,
            table.name,
        ),
    )
