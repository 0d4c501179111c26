"""One latent over the layers of the same token (docs/methods.md, section 5).

Row ids are the same token at every site, so a latent of an SAE of several layers has
an activation at each layer of each token: its trajectory.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from actstore import arguments
from actstore.arguments import checked, optional
from actstore.errors import ActstoreError
from actstore.figures.figure import Axis, Figure, Series
from actstore.figures.layer_order import short_site
from actstore.figures.table import Column, Table, Value
from actstore.store.store import Store
from trainer.analysis.spread_of_latents import widest
from trainer.errors import RunError
from trainer.evaluation.metrics_of_rows import blocks, holds_out, row_ids
from trainer.runs.run_arguments import run_folder
from trainer.runs.run_data import read_run
from trainer.runs.run_store import store_of
from trainer.runs.trained_sae import TrainedSae, load

MOST_LATENTS = 64  # each keeps its activations at all layers of all rows
DEFAULT_LATENTS = 6
DEFAULT_ROWS = 20_000
TOKENS = 3  # single tokens that are shown of each latent
QUANTILES = (0.1, 0.5, 0.9)
TOKEN_STAGE = 11  # of the seed


class _Trajectory(NamedTuple):
    """One latent over layers.

    Attributes:
        latent: Its number.
        values: Where it fires at any layer, float32 [n_layers, n_tokens].
        ids: Ids of those rows, int64 [n_tokens].
    """

    latent: int
    values: Tensor
    ids: NDArray[np.int64]


@checked(
    run=run_folder,
    n_latents=arguments.count_up_to(MOST_LATENTS),
    store=optional(arguments.folder),
    rows=arguments.count,
    seed=arguments.count_from_0,
    device=arguments.device,
)
def compute_trajectories(
    run: str | os.PathLike[str],
    *,
    latents: Sequence[int] = (),
    n_latents: int = DEFAULT_LATENTS,
    store: str | os.PathLike[str] | None = None,
    rows: int | str = DEFAULT_ROWS,
    seed: int = 0,
    device: str = "cpu",
) -> Table:
    """Return the activation of latents over the layers of the same tokens.

    Means and quantiles are over tokens on which the latent fires at any layer.

    Args:
        run: The folder of a run of an SAE of several layers.
        latents: Numbers of latents; none: those of widest spread over layers.
        n_latents: How many of these.
        store: The store; None for the run's own.
        rows: Look at so many tokens at most: 20_000 or "20k".
        seed: Seed of the single tokens that are shown.
        device: Where the SAE runs.

    Raises:
        RunError: The SAE has one layer only, it is a crosscoder, or a latent does not
            exist.
    """
    url = os.fspath(run)
    sae = load(url, device=device)
    _check_layers(sae)
    opened = store_of(url, sae.record, arguments.path_or_none(store)).store
    wanted = _wanted(sae, latents, n_latents)
    ids = _ids(sae, opened, arguments.count(rows))
    values = _activations(sae, opened, ids, wanted)
    found = [
        _trajectory(latent, values[:, :, i], ids) for i, latent in enumerate(wanted)
    ]
    return _table(sae, opened, found, len(ids), seed)


def plot_trajectories(table: Table) -> tuple[Figure, ...]:
    """Return the figures of `compute_trajectories`, one for each latent."""
    latents = np.asarray(table["latent"])
    return tuple(_figure(table, latents == one, one) for one in np.unique(latents))


def _check_layers(sae: TrainedSae) -> None:
    if sae.of_all_sites:
        raise RunError(
            f"{sae.url}: wanted an SAE that sees one layer at a time; a latent of a"
            " crosscoder has one activation for all layers of a token"
        )
    if len(sae.sites) < 2:
        raise RunError(
            f"{sae.url}: wanted an SAE of several layers, this one is of"
            f" {sae.sites[0]} only; train one with --sites of several"
        )


def _wanted(sae: TrainedSae, latents: Sequence[int], n_latents: int) -> list[int]:
    if not latents:
        run = read_run(sae.url)  # the firings that its evaluation has counted
        found: list[int] = widest(run.firings, run.rows, n_latents).tolist()
        if not found:
            raise RunError(f"{sae.url}: none of its latents fired when evaluated")
        return found
    wanted = list(dict.fromkeys(latents))
    if len(wanted) > MOST_LATENTS:
        raise RunError(
            f"--latents: wanted at most {MOST_LATENTS} latents, got {len(wanted)}"
        )
    for latent in wanted:
        if not 0 <= latent < sae.n_latents:
            raise RunError(
                f"{sae.url}: it has no latent {latent}; they are 0 to"
                f" {sae.n_latents - 1}"
            )
    return wanted


def _ids(sae: TrainedSae, store: Store, most: int) -> NDArray[np.int64]:
    split = "held_out" if holds_out(sae, store) else "train"
    ids = row_ids(sae, store, split)[:most]
    if not len(ids):
        raise RunError(f"{store.url}: no rows to look at")
    return ids


@torch.no_grad()
def _activations(
    sae: TrainedSae, store: Store, ids: NDArray[np.int64], latents: list[int]
) -> Tensor:
    """Return chosen latents on the same rows of every site, in original units.

    Returns:
        float32 [n_layers, n_rows, n_latents].
    """
    values = torch.zeros(len(sae.sites), len(ids), len(latents))
    first = 0
    for by_site in blocks(store, sae.sites, ids, sae.n_latents):
        part = slice(first, first + len(by_site[0]))
        for layer, rows in enumerate(by_site):
            encoded = sae.encode(rows.to(sae.device), layer)[:, latents]
            values[layer, part] = (encoded / sae.scale_out[layer]).cpu()
        first = part.stop
    return values


def _trajectory(latent: int, values: Tensor, ids: NDArray[np.int64]) -> _Trajectory:
    fires = (values > 0).any(dim=0)
    return _Trajectory(latent, values[:, fires], ids[fires.numpy()])


def _table(
    sae: TrainedSae,
    store: Store,
    found: Sequence[_Trajectory],
    n_rows: int,
    seed: int,
) -> Table:
    n_layers = len(sae.sites)
    facts: dict[str, Value] = {"tokens looked at": n_rows}
    numbers: dict[str, list[NDArray[np.float64]]] = {
        name: [] for name in ("mean", "q10", "median", "q90", "fires")
    }
    singles: list[list[NDArray[np.float64]]] = [[] for _ in range(TOKENS)]
    for one in found:
        for name, values in _summary(one, n_layers).items():
            numbers[name].append(values)
        chosen = _chosen(one, seed)
        for i, column in enumerate(singles):
            column.append(
                one.values[:, chosen[i]].double().numpy()
                if i < len(chosen)
                else np.full(n_layers, np.nan)
            )
        facts |= _token_facts(store, one, chosen)
    columns = [
        Column("latent", np.repeat([one.latent for one in found], n_layers)),
        Column("tokens", np.repeat([len(one.ids) for one in found], n_layers)),
        Column("layer", np.tile(np.arange(n_layers), len(found))),
        Column("site", list(sae.sites) * len(found)),
        Column("mean", np.concatenate(numbers["mean"]), "mean activation"),
        Column("q10", np.concatenate(numbers["q10"]), "10 % quantile"),
        Column("median", np.concatenate(numbers["median"])),
        Column("q90", np.concatenate(numbers["q90"]), "90 % quantile"),
        Column(
            "fires", np.concatenate(numbers["fires"]), "share of tokens it fires on"
        ),
    ]
    for i, column in enumerate(singles):
        columns.append(Column(f"token_{i + 1}", np.concatenate(column)))
    return Table(
        "trajectories",
        "Latents over the layers of the same token",
        "The activation of a latent at each layer of the same tokens, those on which it"
        " fires at any layer, in the units of the activations. A latent that is built"
        " step by step rises over layers; one of a single layer has one peak.",
        tuple(columns),
        facts,
    )


def _summary(one: _Trajectory, n_layers: int) -> dict[str, NDArray[np.float64]]:
    """Return mean, quantiles and share of firings at each layer, float64 [n_layers]."""
    values = one.values.double().numpy()
    if not values.shape[1]:
        nothing = np.full(n_layers, np.nan)
        return dict.fromkeys(("mean", "q10", "median", "q90", "fires"), nothing)
    low, middle, high = np.quantile(values, QUANTILES, axis=1)
    return {
        "mean": values.mean(axis=1),
        "q10": low,
        "median": middle,
        "q90": high,
        "fires": (values > 0).mean(axis=1),
    }


def _chosen(one: _Trajectory, seed: int) -> NDArray[np.int64]:
    """Return a few tokens of a latent, drawn by chance: indices, int64 [at most 3]."""
    rng = np.random.default_rng(np.random.SeedSequence([seed, TOKEN_STAGE, one.latent]))
    n = len(one.ids)
    return np.sort(rng.choice(n, min(TOKENS, n), replace=False))


def _token_facts(
    store: Store, one: _Trajectory, chosen: NDArray[np.int64]
) -> dict[str, Value]:
    facts: dict[str, Value] = {}
    for i, row in enumerate(one.ids[chosen].tolist()):
        facts[f"latent {one.latent}, token {i + 1}"] = f"row {row}{_text(store, row)}"
    return facts


def _text(store: Store, row: int) -> str:
    """Return the text of a row's token for a table; empty where it is not known."""
    token = int(store.provenance(np.array([row])).token[0])
    if token < 0:
        return ""
    try:
        tokenizer = store.tokenizer()
    except ActstoreError:  # it needs code that nobody has allowed
        tokenizer = None
    return "" if tokenizer is None else f": {tokenizer.decode([token])!r}"


def _figure(table: Table, mine: NDArray[np.bool_], latent: int) -> Figure:
    sites = [short_site(table["site"][i]) for i in np.flatnonzero(mine)]
    layers = np.asarray(table["layer"])[mine]

    def column(name: str) -> NDArray[np.float64]:
        return np.asarray(table[name], np.float64)[mine]

    low, high = column("q10"), column("q90")
    series = [
        Series("10 % to 90 %", layers, column("median"), "band", low, high, colour=0),
        Series("mean", layers, column("mean"), colour=0),
        Series("median", layers, column("median"), "line", colour=1, dashed=True),
    ]
    for i in range(TOKENS):
        values = column(f"token_{i + 1}")
        if not np.isnan(values).all():
            series.append(
                Series(f"token {i + 1}", layers, values, "line", colour=2 + i)
            )
    return Figure(
        f"trajectories-{latent}",
        Axis("layer", categories=tuple(sites)),
        Axis("activation", zero=True),
        tuple(series),
        f"Latent {latent}",
    )
