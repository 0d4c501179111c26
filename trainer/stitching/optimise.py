"""How much of the error is the encoder's: the table `inference_time`.

With the decoder as it is, codes of each row are optimised at the number of latents that
the encoder has on that row. What that gains is the encoder's part of the error.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from actstore import arguments
from actstore.arguments import checked, optional
from actstore.figures.figure import Axis, Drawing, Figure, Series
from actstore.figures.table import Column, Table, Value
from trainer.runs.notes import Tell, as_warning
from trainer.runs.run_arguments import run_folders
from trainer.runs.run_data import name_of
from trainer.runs.trained_sae import FoldedSae, load
from trainer.stitching.add import MSE_UNIT
from trainer.stitching.dictionary import check_one_site
from trainer.stitching.pair import (
    choice_of,
    common_site,
    distinct_names,
    open_rows,
)
from trainer.stitching.pursuit import pursued, refitted

NAME = "inference_time"
ROWS = 2048
MOST_NUMBERS = 1 << 25  # of directions taken in, and of latents, at once: 128 MiB
WAYS = ("encoder", "refitted", "optimised")


class Gap(NamedTuple):
    """Errors of one SAE by how its codes are found.

    Attributes:
        rows: Number of rows.
        l0: Latents that fire in a row.
        encoder: MSE of the encoder's codes.
        refitted: MSE if the encoder says which latents, and codes are optimised.
        optimised: MSE if both are, at the encoder's number of latents in each row.
    """

    rows: int
    l0: float
    encoder: float
    refitted: float
    optimised: float


@torch.no_grad()
def gap_of(sae: FoldedSae, rows: Iterable[Tensor]) -> Gap:
    """Return the errors of an SAE over rows [n, d] in original units."""
    n_rows = 0
    fired = 0
    errors = torch.zeros(3, dtype=torch.float64)
    for whole in rows:
        for x in whole.split(_rows_at_once(sae)):
            latents = sae.encode(x)
            left = x - sae.decode(latents)
            counts = (latents > 0).sum(dim=1)
            by_encoder = left.double().square().sum(dim=1)
            from_bias = x - sae.b_dec
            width = int(counts.max()) if len(counts) else 0
            values, chosen = latents.topk(width, dim=1)
            again = refitted(from_bias, sae.W_dec, chosen, values > 0).error
            # Solved to a tolerance, so that it may be above by a rounding error.
            again = torch.minimum(again, by_encoder)
            free = pursued(from_bias, sae.W_dec, counts).error
            # Greedy, so that the encoder may have found the better latents.
            best = torch.minimum(free, again)
            errors += torch.stack([by_encoder, again, best]).sum(dim=1).cpu()
            n_rows += len(x)
            fired += int(counts.sum())
    mean = (errors / n_rows).tolist()
    return Gap(n_rows, fired / n_rows, *mean)


def _rows_at_once(sae: FoldedSae) -> int:
    m, d = sae.W_dec.shape
    # About 64 latents fire in a row.
    return max(1, min(256, MOST_NUMBERS // max(m, 64 * d)))


@checked(
    runs=run_folders,
    site=optional(arguments.text),
    store=optional(arguments.folder),
    split=arguments.choice("held_out", "train"),
    rows=optional(arguments.count),
    device=arguments.device,
    tell=arguments.callback,
)
def compute_inference_time(
    runs: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    site: str | None = None,
    store: str | os.PathLike[str] | None = None,
    split: str = "held_out",
    rows: int | str | None = ROWS,
    device: str = "cpu",
    tell: Tell = as_warning,
) -> Table:
    """Compare the encoders of runs with codes that are optimised row by row.

    Codes are sparse and not below 0, found by matching pursuit; the better of those and
    of the encoder's latents with optimised codes counts, so the gap is never below 0
    and may be larger than what is found.

    Args:
        runs: The runs, of one site.
        site: The site; None for the only one they share.
        store: The store; None for the one that all were trained from.
        split: "held_out" or "train".
        rows: Rows at most; None for all of them, which takes long.
        device: Where it runs.
        tell: Is given what should be known though it is no error.

    Returns:
        A row for each run.

    Raises:
        RunError: A run is no SAE of one site, or there are no rows.
    """
    choice = choice_of(site, store, split, rows, device)
    saes = [load(url, device=device) for url in arguments.folders(runs)]
    site = common_site(saes, site)
    for sae in saes:
        check_one_site(sae, site)
    some = open_rows(saes, site, choice, tell)
    gaps = [gap_of(sae.fold(site), some) for sae in saes]
    names = distinct_names([name_of(sae.url, sae.record) for sae in saes])
    sizes = np.array([sae.n_latents for sae in saes])
    return _table(names, sizes, gaps, split)


def _table(
    names: Sequence[str],
    sizes: NDArray[np.int64],
    gaps: Sequence[Gap],
    split: str,
) -> Table:
    encoder = np.array([gap.encoder for gap in gaps])
    optimised = np.array([gap.optimised for gap in gaps])
    difference = encoder - optimised
    share = np.divide(
        difference, encoder, out=np.full(len(gaps), np.nan), where=encoder > 0
    )
    columns = (
        Column("run", list(names)),
        Column("n_latents", sizes, "latents"),
        Column("l0", np.array([gap.l0 for gap in gaps]), "L0"),
        Column("mse_encoder", encoder, "MSE of the encoder", MSE_UNIT),
        Column(
            "mse_refitted",
            np.array([gap.refitted for gap in gaps]),
            "MSE with its latents, optimised codes",
            MSE_UNIT,
        ),
        Column("mse_optimised", optimised, "MSE of optimised codes", MSE_UNIT),
        Column("gap", difference, unit=MSE_UNIT),
        Column("encoder_share", share, "share of the error that is the encoder's"),
    )
    facts: dict[str, Value] = {"rows": gaps[0].rows, "split": split}
    text = (
        "The decoder stays, and each row's codes are optimised with as many latents as"
        " the encoder fires on it. The gap is error that a better encoder could avoid;"
        " the rest is the dictionary's."
    )
    return Table(NAME, "Encoders against optimised codes", text, columns, facts)


def plot_inference_time(table: Table) -> tuple[Drawing, ...]:
    """Draw the MSE of each way to find codes, run by run."""
    places = np.arange(len(table))
    series = tuple(
        Series(way, places, table[f"mse_{way}"], "points", colour=number)
        for number, way in enumerate(WAYS)
    )
    figure = Figure(
        f"{NAME}-mse",
        Axis("run", categories=tuple(table["run"])),
        Axis(f"MSE ({MSE_UNIT})", zero=True),
        series,
    )
    return (figure,)
