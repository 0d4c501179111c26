"""Sets the weights that training begins with, from the stream's first rows."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from actstore.format.permutation import permutation
from actstore.stream.stream import Batch, Stream
from trainer.errors import SaeError
from trainer.saes.build import initialise_from
from trainer.saes.centres import Centre, geometric_median, mean
from trainer.saes.encoder_init import FIT_ROWS
from trainer.saes.scaled_rows import ScaledRows
from trainer.training.learner import Learner
from trainer.training.run_stream import next_batch

INIT_ROWS = 1 << 15  # rows to begin from: 100 MB of float32 if d is 768
CENTRES: dict[str, Centre] = {"mean": mean, "geometric_median": geometric_median}
INIT_STAGE = 21  # a part of the draws' key, so that no other draw shares it


def initialise(stream: Stream, learners: Sequence[Learner]) -> None:
    """Set the weights of learners from the stream's first rows, in place.

    The stream then begins again.
    """
    if not learners:
        return
    # read once, for the learner that wants most of them
    most_latents = max(learner.sae.n_latents for learner in learners)
    first = first_rows(stream, most_latents)
    for learner in learners:
        spec = learner.spec
        rows = rows_of(learner, first)
        centre = CENTRES[spec.center_init]
        initialise_from(learner.sae, rows, centre, from_data=spec.init == "data")
        learner.start_average()


def first_rows(stream: Stream, n_latents: int) -> Batch:
    """Return the stream's next whole batches, joined into one.

    They have a row for each latent, though at most about `INIT_ROWS`, and `FIT_ROWS`
    more to fit the encoder on. The stream then goes back.

    Raises:
        SaeError: There is no whole batch.
    """
    start = stream.state()
    wanted = min(INIT_ROWS, n_latents) + FIT_ROWS
    batches: list[Batch] = []
    n_rows = 0
    while n_rows < wanted:
        batch = next_batch(stream)
        if batch is None:
            break
        batches.append(batch)
        n_rows += len(batch.x)
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
    """Return the first rows as the learner sees them, in an order of its seed's own.

    Learners of a group so begin with other directions than each other.
    """
    shuffled = permutation(len(first.x), learner.spec.seed, INIT_STAGE)
    order = torch.from_numpy(shuffled).to(first.x.device)
    target = None if first.target is None else first.target[order]
    return learner.rows(first.x[order], first.layer[order], target)
