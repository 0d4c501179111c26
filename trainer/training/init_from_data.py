"""Where training begins: decoders from the stream's first rows."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from actstore.format.permutation import permutation
from actstore.stream.stream import Batch, Stream
from trainer.errors import SaeError
from trainer.saes.build import initialise_from
from trainer.saes.encoder_init import FIT_ROWS
from trainer.saes.ops import Centre, ScaledRows, geometric_median, mean
from trainer.training.learner import Learner
from trainer.training.run_stream import next_batch

INIT_ROWS = 1 << 15
CENTRES: dict[str, Centre] = {"mean": mean, "geometric_median": geometric_median}
INIT_STAGE = 21  # of the key, so that no other draw shares it


def initialise(stream: Stream, learners: Sequence[Learner]) -> None:
    """Start those that want it from the stream's first rows; the stream then begins
    again.
    """
    if not learners:
        return
    first = first_rows(stream, max(learner.sae.n_latents for learner in learners))
    for learner in learners:
        spec = learner.spec
        initialise_from(
            learner.sae,
            rows_of(learner, first),
            CENTRES[spec.center_init],
            spec.init == "data",
        )
        learner.start_average()


def first_rows(stream: Stream, n_latents: int) -> Batch:
    """Whole batches that hold a row for each latent, up to `INIT_ROWS`, and more to fit
    the encoder on, as one; the stream then goes back.
    """
    start, batches, n = stream.state(), [], 0
    while (
        n < min(INIT_ROWS, n_latents) + FIT_ROWS
        and (batch := next_batch(stream)) is not None
    ):
        batches.append(batch)
        n += len(batch.x)
    stream.restore(start)
    if not batches:
        raise SaeError(
            f"{stream.store.url}: an epoch of this stream has no whole batch of"
            f" {stream.spec.batch:,} rows; lower stream.batch, or bring the"
            " stream.weights of the sites closer together"
        )
    targets = [batch.target for batch in batches if batch.target is not None]
    return Batch(
        torch.cat([batch.x for batch in batches]),
        torch.cat([batch.layer for batch in batches]),
        torch.cat([batch.row for batch in batches]),
        torch.cat(targets) if targets else None,
    )


def rows_of(learner: Learner, first: Batch) -> ScaledRows:
    """The rows as the learner sees them, in an order of its seed's own."""
    order = torch.from_numpy(
        permutation(len(first.x), learner.spec.seed, INIT_STAGE)
    ).to(first.x.device)
    return learner.rows(
        first.x[order],
        first.layer[order],
        None if first.target is None else first.target[order],
    )
