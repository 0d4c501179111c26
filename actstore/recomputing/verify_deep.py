"""Verifies a store beyond its bytes: what it says is computed again.

Of some units, or of all: which rows there are, norms and statistics, from tokens and
values. Of some sequences: the values themselves, with the language model. `verify`
proves that bytes are those recorded; this finds a store whose records are forged, or
whose values are of another model, site, token or position.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from actstore import arguments
from actstore.arguments import checked, optional
from actstore.errors import CorruptError, ModelError, ObjectError, SpecError
from actstore.format.stored_dtypes import numpy_dtype
from actstore.harvesting.run_plan import checked_tap
from actstore.model.checkpoint_files import confirm_code
from actstore.model.forward import device_of
from actstore.model.load_model import LoadedModel, load_or_wrap
from actstore.model.tap import Tap
from actstore.recomputing.forward_rows import ForwardRows
from actstore.recomputing.model_rows import ModelRows
from actstore.recomputing.sampled_sequences import Sample, sampled_runs
from actstore.recomputing.site_figures import figure_problems
from actstore.recomputing.unit_rows import read_unit_rows, row_problems
from actstore.store.open_store import opened_without_cache
from actstore.store.store import Store

# Units that are read where not all are: so many, of so many bytes as they are stored.
_MOST_UNITS = 8
_MOST_BYTES = 4 << 30
_IN_MEMORY = "memory:"  # the name of a model that was not loaded from anywhere


class DeepVerified(NamedTuple):
    """The result of `verify_deep`.

    Attributes:
        units: Units whose rows, norms and statistics were computed again, at all sites.
        rows: Rows of these units, at each site.
        model_rows: Rows that were computed again with the model, at each site.
        worst: By site, the largest distance of a value from that computed again, as a
            share of what rounding allows: above 1 is wrong.
        notes: What could not be looked at, and in what the computation differed.
        problems: A line for each thing that is wrong.
    """

    units: int
    rows: int
    model_rows: int
    worst: dict[str, float]
    notes: list[str]
    problems: list[str]


@checked(
    rows=arguments.count_from_0,
    all_units=arguments.flag,
    seed=arguments.count_from_0,
    device=arguments.device,
    trust_remote_code=arguments.flag,
    progress=optional(arguments.callback),
)
def verify_deep(
    store: Store | str | os.PathLike[str],
    *,
    rows: int = 2048,
    all_units: bool = False,
    seed: int = 0,
    device: str = "cpu",
    model: nn.Module | str | os.PathLike[str] | None = None,
    trust_remote_code: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> DeepVerified:
    """Compute again what a store says, and name what is not so.

    From tokens and stored values: which rows there are, the fill of unused slots,
    norms, statistics. From the language model on the stored tokens: the values of a
    sample of rows, within what the storage dtype and the model's precision may round.

    Args:
        store: An open store, or its folder or URL.
        rows: About how many rows of each site are computed with the model; 0: none, and
            no model is loaded.
        all_units: Compute rows, norms and statistics of all units again, not of a
            sample.
        seed: Which units and sequences are looked at.
        device: Where the model runs: `cpu`, `cuda`, `cuda:1`, or `auto`.
        model: The model, where the name in the store does not lead to it: a folder, a
            hub name, or a module in memory.
        trust_remote_code: Run code that comes with the model. To be said again where
            the store was harvested with it, because a store may come from anyone.
        progress: Called with the number of steps that are done, and of all.

    Returns:
        How much was looked at, and a line for each thing that is wrong.

    Raises:
        SpecError: A model is given for a store that was imported.
        StoreError: There is no finished store.
        ModelError: The model cannot be loaded, or does not have the sites.

    Examples:
        >>> import actstore
        >>> found = actstore.verify_deep("stores/small")
        >>> found.model_rows, found.problems
        (1024, [])
    """
    store = opened_without_cache(store, "verify_deep")
    _check_model(store, model)
    units = _sampled_units(store, seed, all_units=all_units)
    imported = store.manifest.imported is not None
    sample = Sample([], [])
    if rows and not imported:
        sample = sampled_runs(store, rows, seed)
    runs, problems = sample
    steps = _Steps(len(units) * len(store.sites) + len(runs), progress)
    for unit in units:
        problems += _unit_problems(store, unit, steps)
    notes = _notes(store, rows, units)
    n_model_rows = 0
    worst: dict[str, float] = {}
    if runs:
        loaded = _loaded(store, model, device, trust=trust_remote_code)
        problems += _model_problems(store, loaded)
        notes += _numeric_notes(store, device)
        with _tapped(store, loaded) as tap:
            _check_widths(store, tap)
            on = torch.device(device) if device != "auto" else device_of(loaded.module)
            autocast = store.manifest.spec.autocast
            model_rows = ModelRows(store, ForwardRows(loaded, tap, on, autocast))
            for run in runs:
                try:
                    model_rows.add(run)
                except (CorruptError, ObjectError) as error:
                    problems.append(f"corrupt  {error}")
                steps.done()
        problems += model_rows.problems()
        notes += model_rows.notes()
        worst = {site: found.worst for site, found in model_rows.sites.items()}
        n_model_rows = max(found.rows for found in model_rows.sites.values())
    n_rows = int(store.unit_rows[units].sum(dtype=np.int64))
    # An object that several sites share is read for each of them.
    problems = list(dict.fromkeys(problems))
    return DeepVerified(len(units), n_rows, n_model_rows, worst, notes, problems)


class _Steps:
    """Counts steps, and tells of them."""

    def __init__(self, total: int, progress: Callable[[int, int], None] | None) -> None:
        self.total = total
        self.n_done = 0
        self.progress = progress

    def done(self) -> None:
        """Count one more step."""
        self.n_done += 1
        if self.progress is not None:
            self.progress(self.n_done, self.total)


def _check_model(store: Store, model: Any) -> None:
    """Raise SpecError where the model cannot be used."""
    if model is None:
        return
    if not isinstance(model, (nn.Module, str, os.PathLike)):
        raise SpecError(
            "verify_deep: model: wanted a module in memory, a folder or a hub name, got"
            f" {type(model).__name__}"
        )
    if store.manifest.imported is not None:
        raise SpecError(
            f"{store.url}: this store was imported, and what its values were computed"
            " with is not known; leave model (--model) out"
        )


def _sampled_units(store: Store, seed: int, *, all_units: bool) -> list[int]:
    """Return the units that are read as a whole, in order."""
    if all_units:
        return store.units()
    units = np.flatnonzero(store.unit_rows)
    item = numpy_dtype(store.manifest.spec.dtype).itemsize
    width = sum(site.d for site in store.manifest.sites)
    unit_bytes = store.layout.capacity * width * item
    n = max(1, min(_MOST_UNITS, _MOST_BYTES // unit_bytes))
    chosen = np.random.default_rng(seed).permutation(units)[:n]
    return sorted(chosen.tolist())


def _unit_problems(store: Store, unit: int, steps: _Steps) -> list[str]:
    """Return what is wrong with a unit's rows, and with its figures at each site."""
    problems: list[str] = []
    try:
        rows = read_unit_rows(store, unit)
        problems += row_problems(store, rows)
    except (CorruptError, ObjectError) as error:
        return [f"corrupt  {error}"]
    for site in store.sites:
        try:
            problems += figure_problems(store, rows, site)
        except (CorruptError, ObjectError) as error:
            problems.append(f"corrupt  {error}")
        steps.done()
    return problems


def _loaded(
    store: Store,
    model: nn.Module | str | os.PathLike[str] | None,
    device: str,
    *,
    trust: bool,
) -> LoadedModel:
    """Return the model that the rows are computed with."""
    source = store.manifest.spec.model
    if isinstance(model, nn.Module):
        return load_or_wrap(source, model, None, device)
    confirm_code(source, trust, store.url)
    if model is not None:
        name = os.fspath(model)
        source = source.model_copy(update={"name": name, "revision": None})
    elif source.name.startswith(_IN_MEMORY) and not Path(source.name).exists():
        raise ModelError(
            f"{store.url}: its model was harvested from memory; give it: --model FOLDER"
            " (Python: model=), or leave it out with --rows 0 (Python: rows=0)"
        )
    return load_or_wrap(source, None, None, device)


def _tapped(store: Store, loaded: LoadedModel) -> Any:
    """Return the context of a tap at all sites of the store."""
    # Compiling takes longer than a sample, and rounds a little differently at most.
    changes = {"sites": store.sites, "compile": False}
    return checked_tap(loaded, store.manifest.spec.model_copy(update=changes))


def _check_widths(store: Store, tap: Tap) -> None:
    """Raise ModelError where a site has another width in the model."""
    for site in tap.sites:
        wanted = store.site(site.name).d
        if site.d != wanted:
            raise ModelError(
                f"{store.url}: its site {site.name} has vectors of {wanted}, the model"
                f" has {site.d} there; give the model that was harvested (--model)"
            )


def _model_problems(store: Store, loaded: LoadedModel) -> list[str]:
    """Return a line where the model is not the one that the store names."""
    wanted = store.manifest.model.weights_digest
    found = loaded.info.weights_digest
    if found == wanted:
        return []
    line = (
        f"wrong    {store.url}: its activations are said to be of a model with other"
        f" weights: wanted digest {wanted}, the model {loaded.name} has {found}"
    )
    return [line]


def _notes(store: Store, rows: int, units: list[int]) -> list[str]:
    """Return what is not looked at."""
    notes = []
    n_units = int(np.count_nonzero(store.unit_rows))
    if len(units) < n_units:
        notes.append(
            f"norms and statistics of {len(units)} of {n_units} units; --all (Python:"
            " all_units=True) takes all"
        )
    if store.manifest.imported is not None:
        notes.append("imported: there is no model to compute its rows with")
    elif not rows:
        notes.append("no rows were computed with the model")
    return notes


def _numeric_notes(store: Store, device: str) -> list[str]:
    """Return in what this computation differs from the harvest's."""
    numerics = store.manifest.numerics
    on_cpu = device in {"cpu", "auto"} and not torch.cuda.is_available()
    here = {"torch": str(torch.__version__)}
    if on_cpu:
        here |= {"device": "cpu", "threads": str(torch.get_num_threads())}
    differing = [
        f"{name} {value} here, {getattr(numerics, name)} in the harvest"
        for name, value in here.items()
        if value != str(getattr(numerics, name))
    ]
    return [f"computed with {'; '.join(differing)}"] if differing else []
