"""Makes one run of the latents of several: the table `stitch_frankenstein`.

It begins with the first run's latents. Of each further run come those whose cosine with
all latents so far is below a threshold; at last the decoder is trained again, with the
encoder as it is (docs/methods.md, section 3).
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
import torch

from actstore import arguments
from actstore.arguments import checked, optional
from actstore.figures.figure import Axis, Drawing, Figure, Series
from actstore.figures.table import Column, Table, Value
from actstore.format.absolute_url import absolute
from schemas.records import StitchedFrom, StitchRecord
from trainer.analysis.cosines import max_cosine
from trainer.errors import RunError
from trainer.runs.notes import Tell, as_warning
from trainer.runs.run_arguments import run_folders
from trainer.runs.run_store import check_fits
from trainer.stitching.add import MSE_UNIT
from trainer.stitching.checks import THRESHOLD, cosine
from trainer.stitching.dictionary import Dictionary
from trainer.stitching.pair import (
    Opened,
    Side,
    check_store,
    choice_of,
    common_filter,
    distinct_names,
    open_sides,
)
from trainer.stitching.retrain_decoder import (
    LEARNING_RATE,
    Retraining,
    Tick,
    batch_for,
    retrained,
)
from trainer.stitching.stitched_run import Stitched, check_empty, write_run
from trainer.stitching.walk import Walk, walk

NAME = "stitch_frankenstein"
ROWS = 1_000_000


def stitched(dictionaries: Sequence[Dictionary], threshold: float) -> Stitched:
    """Return the first dictionary with what is novel in the others, one by one.

    A latent is taken if its cosine with every latent so far is below the threshold;
    those of its own run are not compared with each other.
    """
    latents = dictionaries[0]
    kept = torch.arange(latents.n_latents)
    runs = [torch.zeros_like(kept)]
    numbers = [kept]
    without = [0]
    for number, other in enumerate(dictionaries[1:], start=1):
        matches = max_cosine(latents.W_dec, other.W_dec)
        taken = (matches.cosine < threshold).nonzero()[:, 0]
        latents = latents.joined(other.taken(taken))
        runs.append(torch.full((len(taken),), number))
        numbers.append(taken.cpu())
        without.append(matches.without_direction)
    return Stitched(latents, torch.cat(runs), torch.cat(numbers), tuple(without))


@checked(
    runs=run_folders,
    out=arguments.folder,
    site=optional(arguments.text),
    threshold=cosine,
    retrain=arguments.count_from_0,
    lr=arguments.positive,
    seed=arguments.count_from_0,
    store=optional(arguments.folder),
    split=arguments.choice("held_out", "train"),
    rows=optional(arguments.count),
    device=arguments.device,
    tell=arguments.callback,
    progress=optional(arguments.callback),
)
def compute_stitch_frankenstein(
    runs: Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    *,
    site: str | None = None,
    threshold: float = THRESHOLD,
    retrain: int | str = ROWS,
    lr: float = LEARNING_RATE,
    seed: int = 0,
    store: str | os.PathLike[str] | None = None,
    split: str = "held_out",
    rows: int | str | None = None,
    device: str = "cpu",
    tell: Tell = as_warning,
    progress: Tick | None = None,
) -> Table:
    """Stitch runs into a new one, which evaluates, exports and reports like any other.

    Nothing is written until all of it is made, and `sae.json`, which makes the folder a
    finished run, comes last.

    Args:
        runs: The runs, smallest first, of one site and store.
        out: The folder of the new run.
        site: The site; None for the only one they share.
        threshold: Cosine below which a latent is taken.
        retrain: Training rows on which the decoder is trained; 0 leaves it.
        lr: The learning rate at the start of that, for decoder rows of norm 1.
        seed: Of the order of rows.
        store: The store; None for the one that all were trained from.
        split: The rows on which the MSE is measured, "held_out" or "train".
        rows: How many of them at most; None for all.
        device: Where it is trained.
        tell: Is given what should be known though it is no error.
        progress: Is told how many training rows are done, and of how many.

    Returns:
        A row for each of the runs.

    Raises:
        RunError: The runs cannot be stitched, or `out` is not empty.
        DivergedError: The loss is no longer a number.
    """
    urls = arguments.folders(runs)
    out = os.fspath(out)
    n_retrain = arguments.count_from_0(retrain)
    if len(urls) < 2:
        raise RunError(f"wanted at least two runs to stitch, got {len(urls)}")
    check_empty(out)
    choice = choice_of(site, store, split, rows, device)
    opened = open_sides(urls, choice, tell)
    _check_sides(opened, urls, tell)
    whole = stitched([side.latents for side in opened.sides], threshold)
    how = Retraining(n_retrain, lr, batch_for(whole.latents.n_latents), seed)
    trained = _retrained(whole.latents, opened, how, progress)
    before = walk(whole.latents, whole.latents, [], opened.rows)
    after = walk(trained, trained, [], opened.rows)
    record = _record(opened, whole, threshold, how, (before, after))
    write_run(out, opened, trained, whole, record)
    return _table(record, float(after.l0[0]))


def _retrained(
    latents: Dictionary, opened: Opened, how: Retraining, progress: Tick | None
) -> Dictionary:
    """Return latents with a decoder trained on the rows that all runs were trained on.

    Raises:
        RunError: The runs were trained with different filters.
    """
    rule = common_filter([side.sae for side in opened.sides])
    rows = opened.rows
    return retrained(latents, rows.store, rows.site, rule, how, progress)


def _check_sides(opened: Opened, urls: Sequence[str], tell: Tell) -> None:
    """Refuse runs of another store; say where the order of sizes is unusual."""
    sizes = [side.latents.n_latents for side in opened.sides]
    for side in opened.sides:
        check_fits(side.sae.record, opened.rows.store)
        # Its encoder knows the rows of its own store, and no others.
        check_store(side.sae, opened.rows.store)
    if sizes != sorted(sizes):
        tell(f"the runs are not in order of size: {', '.join(urls)} have {sizes}")


def _sources(sides: Sequence[Side], whole: Stitched) -> tuple[StitchedFrom, ...]:
    names = distinct_names([side.name for side in sides])
    return tuple(
        StitchedFrom(
            run=absolute(side.sae.url),
            name=name,
            n_latents=side.latents.n_latents,
            taken=int((whole.run == number).sum()),
            without_direction=whole.without_direction[number],
        )
        for number, (name, side) in enumerate(zip(names, sides, strict=True))
    )


def _record(
    opened: Opened,
    whole: Stitched,
    threshold: float,
    how: Retraining,
    walks: tuple[Walk, Walk],
) -> StitchRecord:
    """Return the record of a stitched run; `walks`: before and after retraining."""
    before, after = walks
    return StitchRecord(
        site=opened.rows.site,
        threshold=threshold,
        runs=_sources(opened.sides, whole),
        retrained_rows=how.rows,
        batch=how.batch,
        lr=how.lr,
        seed=how.seed,
        rows=before.rows,
        mse_before=float(before.mse[0]),
        mse_after=float(after.mse[0]),
    )


def _table(record: StitchRecord, l0: float) -> Table:
    taken = np.array([run.taken for run in record.runs])
    columns = (
        Column("run", [run.name for run in record.runs]),
        Column(
            "n_latents", np.array([run.n_latents for run in record.runs]), "latents"
        ),
        Column("taken", taken),
        Column("size", np.cumsum(taken), "size so far"),
        Column(
            "without_direction",
            np.array([run.without_direction for run in record.runs]),
            "without direction",
        ),
    )
    facts: dict[str, Value] = {
        "threshold": record.threshold,
        "latents": int(taken.sum()),
        "L0": l0,
        f"MSE before retraining ({MSE_UNIT})": record.mse_before,
        f"MSE after retraining ({MSE_UNIT})": record.mse_after,
        "rows of retraining": record.retrained_rows,
        "rows of MSE": record.rows,
    }
    text = (
        "The first run's latents, and of each further run those whose cosine with all"
        " so far is below the threshold; then the decoder alone was trained again."
    )
    return Table(NAME, "A run stitched from several", text, columns, facts)


def plot_stitch_frankenstein(table: Table) -> tuple[Drawing, ...]:
    """Draw how many latents are of which run."""
    names = tuple(table["run"])
    places = np.arange(len(names))
    figure = Figure(
        f"{NAME}-sources",
        Axis("run", categories=names),
        Axis("latents", zero=True),
        (
            Series("all", places, table["n_latents"], "bars", colour=0),
            Series("taken", places, table["taken"], "bars", colour=1),
        ),
    )
    return (figure,)
