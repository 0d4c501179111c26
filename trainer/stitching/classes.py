"""Novel and reconstruction latents by what they do: the table `stitch_classes`."""

from __future__ import annotations

import numpy as np

from actstore.figures.figure import Axis, Drawing, Figure, Series
from actstore.figures.table import Column, Table
from trainer.stitching.add import CLASSES

NAME = "stitch_classes"
EFFECTS = ("better", "worse", "silent")


def compute_stitch_classes(added: Table) -> Table:
    """Return the table of novel and reconstruction latents by the sign of their effect.

    added: What `compute_stitch_add` returned.
    """
    delta = added["delta_mse"]
    of_class = np.array(added["class"])
    fires = added["fires"] > 0
    counts: dict[str, list[int]] = {"better": [], "worse": [], "silent": []}
    for name in CLASSES:
        here = of_class == name
        counts["better"].append(int((here & fires & (delta < 0)).sum()))
        counts["worse"].append(int((here & fires & (delta >= 0)).sum()))
        counts["silent"].append(int((here & ~fires).sum()))
    columns = (
        Column("class", list(CLASSES)),
        Column(
            "better", np.array(counts["better"]), "change of MSE below 0", "latents"
        ),
        Column("worse", np.array(counts["worse"]), "change of MSE above 0", "latents"),
        Column("silent", np.array(counts["silent"]), "never fires", "latents"),
    )
    text = (
        "How many latents of either class make the small SAE better or worse, each"
        " added alone. A novel latent has no like in the small SAE, a reconstruction"
        " latent has."
    )
    return Table(NAME, "Novel and reconstruction latents", text, columns, added.facts)


def plot_stitch_classes(table: Table) -> tuple[Drawing, ...]:
    """Draw how many latents of each class make the small SAE better or worse."""
    places = np.arange(len(table))
    series = tuple(
        Series(table.column(name).label, places, table[name], "bars", colour=number)
        for number, name in enumerate(EFFECTS)
    )
    figure = Figure(
        f"{NAME}-effects",
        Axis("class", categories=tuple(table["class"])),
        Axis("latents", zero=True),
        series,
    )
    return (figure,)
