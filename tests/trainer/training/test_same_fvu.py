"""Training from the stream is training from a full permutation: the same SAE ends at
the same FVU.

The store is the builtin language model's; one arm takes its batches from `Store.stream`
(windows of a quarter of the store, so that mixing is put to the test), the other from a
permutation of all rows of all sites in memory, a fresh one at each epoch. Both arms of
a seed begin at the same weights. A third arm takes the rows as they lie in the store,
one site after the other: what is seen there would be seen here.
"""

from __future__ import annotations

from collections.abc import Callable, Generator

import numpy as np
import pytest
import torch

import actstore
from actstore.store.store import Store
from actstore.stream.rescale import Rescaling
from schemas.stream import StreamSpec
from schemas.train import TrainSpec
from trainer.saes.build import build, initialise_from
from trainer.training.learner import Learner

SEEDS, BATCH, STEPS = 5, 256, 400
Batches = Generator[tuple[torch.Tensor, torch.Tensor], None, None]


class Rows:
    """All rows of a split in memory: x [n, d], layer [n]; one site behind the other, in
    store order.
    """

    def __init__(self, store: Store, split: str) -> None:
        ids = store.rows(split)
        self.x = torch.from_numpy(
            np.concatenate([store.read(site, ids) for site in store.sites])
        )
        self.layer = torch.arange(len(store.sites)).repeat_interleave(len(ids))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return actstore.harvest(
        {
            "model": "builtin:tiny",
            "corpus": "builtin:stdlib",
            "sites": "blocks.*.hook_mlp_out",
            "tokens": 20_000,
            "context": 64,
            "chunk_rows": 64,
        },
        str(tmp_path_factory.mktemp("fvu") / "store"),
    )


def from_the_stream(store: Store, _: Rows, seed: int) -> Batches:
    spec = StreamSpec(batch=BATCH, seed=seed, epochs=None, window_chunks=80)
    with store.stream(spec, threads=1) as stream:
        for batch in stream:
            yield batch.x, batch.layer


def from_a_permutation(_: Store, rows: Rows, seed: int) -> Batches:
    generator = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(len(rows.x), generator=generator)
        for index in order.split(BATCH):
            yield rows.x[index], rows.layer[index]


def in_store_order(_: Store, rows: Rows, seed: int) -> Batches:
    while True:
        yield from zip(rows.x.split(BATCH), rows.layer.split(BATCH), strict=True)


def fvu(
    store: Store,
    rows: Rows,
    held_out: Rows,
    make: Callable[[Store, Rows, int], Batches],
    seed: int,
) -> float:
    """Train, then the held-out FVU over all sites against each site's mean, as
    `metrics.md` defines it; float64.
    """
    d = rows.x.shape[1]
    spec = TrainSpec.model_validate(
        {
            "store": store.url,
            "sae": {"kind": "topk", "k": 8, "n_latents": 4 * d},
            "optimiser": {"lr": 3e-3},
            "dead_rows": 20_000,
        }
    )
    sae = build(spec.sae, d, seed)
    first = torch.randperm(
        len(rows.x), generator=torch.Generator().manual_seed(1000 + seed)
    )[: sae.n_latents]
    initialise_from(sae, rows.x[first])
    n = len(store.sites)
    learner = Learner(
        spec,
        sae,
        Rescaling(np.ones(n), None),
        torch.ones(n),
        STEPS,
        torch.device("cpu"),
    )
    batches = make(store, rows, seed)
    for _ in range(STEPS):
        learner.update(*next(batches))
    batches.close()
    with torch.no_grad():
        error = (
            (sae.decode(sae.encode(held_out.x)) - held_out.x).double().square().sum()
        )
    means = torch.stack([torch.from_numpy(store.mean(site)) for site in store.sites])
    return float(error / (held_out.x.double() - means[held_out.layer]).square().sum())


@pytest.mark.slow
def test_the_stream_and_a_full_permutation_end_at_the_same_fvu(store: Store) -> None:
    rows, held_out = Rows(store, "train"), Rows(store, "held_out")
    arms = [
        np.array([fvu(store, rows, held_out, make, seed) for seed in range(SEEDS)])
        for make in (from_the_stream, from_a_permutation)
    ]
    ordered = np.array(
        [fvu(store, rows, held_out, in_store_order, seed) for seed in range(1)]
    )
    stream, plain = (arm.mean() for arm in arms)
    # of the difference of the two means
    error = np.sqrt(sum(arm.var(ddof=1) for arm in arms) / SEEDS)
    assert plain < 0.3, "nothing was learned"
    assert len(set(arms[0])) == len(set(arms[1])) == SEEDS
    assert abs(stream - plain) < 2 * error, arms
    assert abs(stream - plain) < 0.01 * plain, arms
    assert ordered.mean() > 1.05 * plain, "an order that is bad must be seen"
