"""Opens the runs that are stitched, and the rows on which that is measured."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from actstore import arguments
from actstore.store.store import Store
from schemas.records import RunRecord
from schemas.stream import RowFilter
from trainer.errors import RunError
from trainer.evaluation.metrics_of_rows import blocks, row_ids
from trainer.kernels.devices import usable
from trainer.runs.notes import Tell
from trainer.runs.run_data import name_of
from trainer.runs.run_store import is_store_of, store_of
from trainer.runs.trained_sae import TrainedSae, load
from trainer.stitching.dictionary import Dictionary, dictionary_of

ROWS_AT_ONCE = 1024


class Side(NamedTuple):
    """One of the SAEs.

    Attributes:
        name: What tables call it.
        sae: The SAE.
        latents: Its dictionary at the site.
    """

    name: str
    sae: TrainedSae
    latents: Dictionary


@dataclass(frozen=True, eq=False)
class Rows:
    """Rows of one site.

    Attributes:
        store: The store.
        site: The site.
        ids: Their ids, int64 [n], ascending.
        device: Where they are wanted.
        split: What they are of.
    """

    store: Store
    site: str
    ids: NDArray[np.int64]
    device: torch.device
    split: str

    def __iter__(self) -> Iterator[Tensor]:
        """Yield the rows block by block, float32 [n, d]."""
        for (whole,) in blocks(self.store, (self.site,), self.ids, 1):
            for block in whole.split(ROWS_AT_ONCE):
                yield block.to(self.device)


class Opened(NamedTuple):
    """The opened runs, site and store that a command works on.

    Attributes:
        sides: The SAEs, as they were named.
        rows: The rows.
    """

    sides: tuple[Side, ...]
    rows: Rows


class Choice(NamedTuple):
    """The user's choices beside the runs.

    Attributes:
        site: The site; None for the only one they have in common.
        store: The store; None for the one that the first run was trained from.
        split: "held_out" or "train".
        rows: Rows at most; None for all of them.
        device: Where the SAEs run.
    """

    site: str | None = None
    store: str | None = None
    split: str = "held_out"
    rows: int | None = None
    device: str = "cpu"


def choice_of(
    site: str | None,
    store: str | os.PathLike[str] | None,
    split: str,
    rows: int | str | None,
    device: str,
) -> Choice:
    """Return what a user chose, as it was given: rows may be text such as "50k"."""
    most = None if rows is None else arguments.count(rows)
    return Choice(site, arguments.path_or_none(store), split, most, device)


def open_sides(runs: Sequence[str], choice: Choice, tell: Tell) -> Opened:
    """Open runs whose latents are moved between them, and their rows.

    Raises:
        RunError: They cannot be stitched with each other; or as `open_rows`.
    """
    saes = [load(run) for run in runs]
    site = common_site(saes, choice.site)
    device = usable(choice.device)
    sides = [
        Side(name_of(sae.url, sae.record), sae, dictionary_of(sae, site).to(device))
        for sae in saes
    ]
    return Opened(tuple(sides), open_rows(saes, site, choice, tell))


def open_rows(
    saes: Sequence[TrainedSae], site: str, choice: Choice, tell: Tell
) -> Rows:
    """Open the rows on which SAEs of one site are compared.

    Raises:
        RunError: The SAEs are of different stores and none was chosen, were trained
            with different filters, or there are no rows.
    """
    first = saes[0]
    opened = store_of(first.url, first.record, choice.store)
    if opened.note is not None:
        tell(opened.note)
    if choice.store is None:
        for sae in saes[1:]:
            check_store(sae, opened.store)
    common_filter(saes)
    ids = row_ids(first, opened.store, choice.split)[: choice.rows]
    if not len(ids):
        raise RunError(
            f"{opened.store.url}: no {choice.split} rows; a store of fewer than 20"
            " units holds none out, use --split train"
        )
    return Rows(opened.store, site, ids, usable(choice.device), choice.split)


def check_store(sae: TrainedSae, store: Store) -> None:
    """Raise RunError where an SAE was trained from another store."""
    if not is_store_of(sae.record.content_id, store.manifest):
        raise RunError(
            f"{sae.url}: it is from the store of content id"
            f" {sae.record.content_id or 'unknown'} ({sae.record.store or 'imported'}),"
            f" but {store.url} is of {store.manifest.content_id}; give --store to"
            " measure both on the rows of one"
        )


def common_filter(saes: Sequence[TrainedSae]) -> RowFilter | None:
    """Return the filter that SAEs were trained with; RunError where they differ."""
    first = saes[0]
    for sae in saes[1:]:
        if sae.record.filter != first.record.filter:
            raise RunError(
                f"{sae.url}: it was trained on other rows than {first.url} (their"
                " filters differ), so no rows are right for both"
            )
    return first.record.filter


def common_site(saes: Sequence[TrainedSae], site: str | None) -> str:
    """Return the site at which SAEs are compared.

    Args:
        saes: The SAEs.
        site: What the user chose; None for the only one that all of them have.

    Raises:
        RunError: There is no such site, there are several, or widths differ.
    """
    first = saes[0]
    found = common_sites([sae.record for sae in saes])
    names = ", ".join(sae.url for sae in saes)
    if site is not None and site not in found:
        raise RunError(
            f"--site {site}: not all of {names} have it; they share"
            f" {', '.join(found) or 'no site'}"
        )
    if site is None and not found:
        sites = "; ".join(f"{sae.url}: {', '.join(sae.sites)}" for sae in saes)
        raise RunError(f"SAEs of different sites cannot be compared ({sites})")
    if site is None and len(found) > 1:
        raise RunError(
            f"{names} share {len(found)} sites; say which with --site: one of"
            f" {', '.join(found)}"
        )
    for sae in saes:
        if sae.d != first.d:
            raise RunError(
                f"{sae.url}: it is of width {sae.d}, {first.url} of {first.d}; wanted"
                " SAEs of one model"
            )
    return site or found[0]


def common_sites(records: Sequence[RunRecord]) -> list[str]:
    """Return the sites that all records have, in the first one's order."""
    return [
        site
        for site in records[0].sites
        if all(site in record.sites for record in records)
    ]


def distinct_names(names: Sequence[str]) -> tuple[str, ...]:
    """Return names with which runs can be told apart: further ones get a number."""
    seen: dict[str, int] = {}
    distinct = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        distinct.append(name if seen[name] == 1 else f"{name} #{seen[name]}")
    return tuple(distinct)
