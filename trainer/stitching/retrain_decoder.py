"""Trains the decoder of a stitched SAE, with its encoder as it is.

The loss is the squared error alone. The encoder is frozen, so a latent fires on the
same rows as before; the decoder's bias is trained too, and what the encoder would
notice of that goes into its biases.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from actstore.store.store import Store
from schemas.stream import RowFilter, StreamSpec
from trainer.errors import DivergedError
from trainer.stitching.dictionary import Dictionary

LEARNING_RATE = 3e-3
"""Adam's, for decoder rows of norm 1 and rows with a mean squared norm of 1. It falls
to 0 in a straight line. With this batch, 895 latents and 400,000 rows came within 2 %
of the least squares solution; batches of 4,096 took four times as many rows."""
BATCH = 1024
MOST_CODES = 1 << 27  # latents of a batch: 512 MiB

# Is told how many rows are done, and of how many.
Tick = Callable[[int, int], None]


class Retraining(NamedTuple):
    """How a decoder is trained.

    Attributes:
        rows: Rows of training.
        lr: The learning rate at the start.
        batch: Rows per batch.
        seed: Of the order of rows.
    """

    rows: int
    lr: float
    batch: int
    seed: int


def batch_for(n_latents: int) -> int:
    """Return how many rows a batch has: fewer where there are very many latents."""
    return max(1, min(BATCH, MOST_CODES // n_latents))


def retrained(
    dictionary: Dictionary,
    store: Store,
    site: str,
    rule: RowFilter | None,
    how: Retraining,
    tick: Tick | None = None,
) -> Dictionary:
    """Return a dictionary with its decoder trained on a store's training rows.

    Decoder rows have norm 1 afterwards, latents the units that go with them.

    Args:
        dictionary: The dictionary.
        store: The store.
        site: Its site.
        rule: The filter of the rows.
        how: How it is trained.
        tick: Is told how many rows are done.

    Raises:
        DivergedError: The loss is no longer a number.
    """
    unit = dictionary.with_unit_decoder().to(torch.float32)
    unit = unit.to(dictionary.W_dec.device)
    if not how.rows:
        return unit
    spec = StreamSpec(
        sites=(site,),
        batch=how.batch,
        filter=rule,
        seed=how.seed,
        epochs=None,
        limit_rows=how.rows,
    )
    with store.stream(spec, device=unit.W_dec.device) as stream:
        batches = (batch.x.float() for batch in stream)
        trained = fitted(unit, batches, how, _row_norm(store, site), tick)
    return trained.with_unit_decoder().to(torch.float32).to(unit.W_dec.device)


def fitted(
    dictionary: Dictionary,
    batches: Iterable[Tensor],
    how: Retraining,
    row_norm: float,
    tick: Tick | None = None,
) -> Dictionary:
    """Return a dictionary whose W_dec and b_dec were trained on batches [n, d].

    Args:
        dictionary: The dictionary, with decoder rows of norm 1.
        batches: Rows in original units.
        how: How it is trained; `rows` says when the learning rate is 0.
        row_norm: Root of the mean squared norm of rows, which training divides by.
        tick: Is told how many rows are done.

    Raises:
        DivergedError: The loss is no longer a number.
    """
    W_dec = dictionary.W_dec.clone().requires_grad_()
    b_dec = (dictionary.b_dec / row_norm).requires_grad_()
    optimiser = torch.optim.Adam([W_dec, b_dec], lr=how.lr)
    done = 0
    for x in batches:
        with torch.no_grad():
            latents = dictionary.encode(x) / row_norm
        for group in optimiser.param_groups:
            group["lr"] = how.lr * max(0.0, 1 - done / how.rows)
        left = x / row_norm - latents @ W_dec - b_dec
        loss = left.square().sum(dim=1).mean()
        if not math.isfinite(float(loss.detach())):
            raise DivergedError(
                f"after {done:,} rows the loss is {float(loss.detach())}; lower --lr"
            )
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        done += len(x)
        if tick is not None:
            tick(done, how.rows)
    # The encoder still sees the decoder's bias that it was trained with.
    moved = dictionary.moved_to(b_dec.detach() * row_norm)
    return moved._replace(W_dec=W_dec.detach())


def _row_norm(store: Store, site: str) -> float:
    """Return the root of the mean squared norm of a site's training rows."""
    squares = store.mean(site) ** 2 + store.variance(site)
    norm = math.sqrt(float(squares.sum()))
    return norm or 1.0
