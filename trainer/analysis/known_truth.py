"""Finds what a run's dictionary is compared with: true features, or a larger run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from actstore.store.open_store import open as open_store
from actstore.store.store import Store
from actstore.store.true_features import TrueFeatures, read_true_features
from schemas.records import RunRecord
from trainer.analysis.seed_groups import AnyRun, Run, kind_of_run, sparsity_setting
from trainer.errors import RunError
from trainer.runs.run_store import check_fits, store_of

TRUE_FEATURES = "true features"


class Truth(NamedTuple):
    """The true features of a run's rows.

    Attributes:
        directions: float32 [n_features, d].
        store: The store that has them.
    """

    directions: Tensor
    store: str


def truth_of(run: str, record: RunRecord, given: str | None = None) -> Truth | None:
    """Return the true features of a run's store; None where they are not known.

    Args:
        run: The run's folder.
        record: Its record.
        given: A store of toy data to use in place of the run's own.

    Raises:
        RunError: The store that was given has no true features, or does not fit.
    """
    store = _store(run, record, given)
    if store is None:
        return None
    found = read_true_features(store)
    if found is None:
        if given is None:
            return None
        raise RunError(
            f"{given}: wanted a store of toy data, which has its true features in"
            " features.json; there is none (`actstore toy --out STORE` makes one)"
        )
    _check_site(run, record, found, store)
    return Truth(torch.from_numpy(found.directions), store.url)


def next_larger(runs: Sequence[AnyRun]) -> list[int | None]:
    """Return for each run the number of the next larger one; None where none is.

    Only runs of the same sites, kind, sparsity and seed are compared; of several of
    one size it is the first.
    """
    groups: dict[tuple[object, ...], list[int]] = {}
    for i, run in enumerate(runs):
        groups.setdefault(_setting(run), []).append(i)
    sizes = [run.record.n_latents for run in runs]
    larger: list[int | None] = [None] * len(runs)
    for group in groups.values():
        for i in group:
            above = [j for j in group if sizes[j] > sizes[i]]
            if above:
                larger[i] = min(above, key=sizes.__getitem__)
    return larger


def _setting(run: Run) -> tuple[object, ...]:
    sparsity = str(sparsity_setting(run))
    return (run.record.sites, kind_of_run(run), sparsity, run.record.seed)


def _store(run: str, record: RunRecord, given: str | None) -> Store | None:
    if given is not None:
        store = open_store(given)
        check_fits(record, store)
        return store
    if not record.store:
        return None  # an imported SAE, which knows no store
    return store_of(run, record).store


def _check_site(run: str, record: RunRecord, found: TrueFeatures, store: Store) -> None:
    outputs = record.targets or record.sites
    if set(outputs) != {found.record.site}:
        raise RunError(
            f"{run}: the true features of {store.url} are those of its site"
            f" {found.record.site}, this SAE is of {', '.join(outputs)}"
        )
