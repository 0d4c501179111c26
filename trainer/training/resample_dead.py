"""New directions for dead latents, as in "Towards Monosemanticity" (Bricken et al.
2023, appendix on resampling).

Many rows (the paper's 819,200, `Resampling.candidates`) are put through the SAE as it
is, and each dead latent gets one of them, drawn in proportion to the square of its loss
(here its squared error). The centred row at norm 1 becomes the latent's dictionary
vector, and at `encoder_scale` times the mean norm of the living encoder vectors its
encoder vector; its biases become 0, and Adam forgets all of them. One difference from
the paper: a row is drawn once only, as long as there are enough.

The rows are those that the stream gives next; it then goes back. Draws are a function
of the seed, the step and the rows' ids: a resumed run, and any number of processes,
makes the same ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from actstore.stream.stream import Batch, Stream
from schemas.train import Resampling
from trainer.saes.build import LATENT_AXIS, Sae
from trainer.saes.crosscoder import CrosscoderSae
from trainer.saes.mlp_encoder import MlpEncoderSae
from trainer.saes.ops import ScaledRows, encoder_input, of_layer, unit_rows
from trainer.saes.transcoder import TranscoderSae
from trainer.training.run_stream import next_batch
from trainer.training.weighted_sample import Draw

if TYPE_CHECKING:
    from trainer.training.learner import Learner

STAGE = 41
CANDIDATES = 819_200  # of the paper


def due(plan: Resampling, step: int, batch: int) -> bool:
    """Whether latents are resampled behind update `step`, counted from 1: when a
    multiple of `every` rows is passed.
    """
    now, before = step * batch // plan.every, (step - 1) * batch // plan.every
    return now > before and now <= plan.times


def dead_latents(plan: Resampling, silent_rows: Tensor) -> Tensor:
    """int64: the latents to resample."""
    return (silent_rows > (plan.silent_rows or max(1, plan.every // 2))).nonzero()[:, 0]


def candidates(plan: Resampling, batch: int) -> int:
    """ScaledRows to draw from."""
    return plan.candidates or max(batch, min(CANDIDATES, plan.every // 50))


@torch.no_grad()
def resample(stream: Stream, learners: Sequence[Learner]) -> None:
    """Give the dead latents of those learners that are due behind their last update new
    weights, in place.

    Not behind a run's last update: nothing would train them. Where the stream has no
    more rows the latents stay as they are. All processes of a run call this together.
    """
    batch = stream.spec.batch
    planned = [
        (one, one.spec.resample)
        for one in learners
        if one.spec.resample is not None and one.step < one.steps
    ]
    renewals = [
        _Renewal(one, plan, batch)
        for one, plan in planned
        if due(plan, one.step, batch)
    ]
    renewals = [one for one in renewals if one.n]
    if not renewals:
        return
    start, most = stream.state(), max(one.rows for one in renewals)
    parallel = renewals[0].learner.parallel
    for seen in range(0, min(most, stream.rows_per_epoch), batch):
        rows = next_batch(stream, parallel)
        if rows is None:
            break
        for one in renewals:
            if seen < one.rows:
                one.consider(rows, len(stream.sites))
    stream.restore(start)
    for one in renewals:
        one.take()


class _Renewal:
    """The dead latents of one learner, and the rows that are drawn for them."""

    def __init__(self, learner: Learner, plan: Resampling, batch: int) -> None:
        self.learner, self._plan = learner, plan
        self._latents = dead_latents(plan, learner.silent_rows)
        here = len(self._latents)
        self._first, self.n = (
            (0, here) if learner.parallel is None else learner.parallel.places(here)
        )
        self.rows = candidates(plan, batch)
        self._draw = Draw(self.n, learner.spec.seed, STAGE, learner.step)

    def consider(self, batch: Batch, n_sites: int) -> None:
        learner = self.learner
        rows = learner.rows(batch.x, batch.layer, batch.target, batch.batch_position)
        error = (
            (learner.reconstruction(rows).float() - rows.wanted)
            .square()
            .flatten(1)
            .sum(dim=1)
        )
        self._draw.add(rows, error.square(), batch.row * n_sites + batch.layer)

    def take(self) -> None:
        learner, parallel, latents = self.learner, self.learner.parallel, self._latents
        drawn = self._draw.result(None if parallel is None else parallel.all_rows)
        if drawn is None:
            return
        places = torch.arange(
            self._first, self._first + len(latents), device=latents.device
        ) % len(drawn.key)
        drawn = drawn.map(lambda field: field[places])
        rows = ScaledRows(drawn.x, drawn.layer, learner.norms, drawn.target)
        norm = mean_norm if parallel is None else parallel.mean_norm
        replace(learner.sae, latents, rows, self._plan.encoder_scale, norm)
        learner.forget(latents)


@torch.no_grad()
def replace(
    sae: Sae,
    latents: Tensor,
    rows: ScaledRows,
    encoder_scale: float,
    living_norm: Callable[[Tensor], Tensor | float] | None = None,
) -> None:
    """Latents [n] take their directions from rows [n]: decoder at the norm the kind
    keeps, small encoder, no bias.

    living_norm: mean norm of the vectors [., d] of all living latents, from those that
    are here; None: they are all.
    """
    living_norm = living_norm or mean_norm
    if isinstance(sae, CrosscoderSae | TranscoderSae):
        rows, sae = sae.inner_rows(rows), sae.inner
    inputs = encoder_input(rows.x, sae.b_dec, rows.layer, sae.shape)
    # a latent's own weights are those behind the hidden layer
    if isinstance(sae, MlpEncoderSae):
        inputs = (inputs @ sae.W_hidden + sae.b_hidden).relu()
    outputs = rows.wanted - of_layer(sae.b_dec, rows.layer)
    living = torch.ones(
        sae.n_latents, dtype=torch.bool, device=latents.device
    ).index_fill_(0, latents, False)
    length = 1.0 if sae.unit_decoder else living_norm(sae.W_dec[living])
    sae.W_dec[latents] = unit_rows(outputs) * length
    if sae.W_enc is not None:
        norm = encoder_scale * living_norm(sae.W_enc[:, living].T)
        sae.W_enc[:, latents] = (unit_rows(inputs) * norm).T
    for name, parameter in sae.named_parameters():
        if LATENT_AXIS.get(name) == -1:
            start = parameter.new_zeros(())
            # the mean threshold, which is a mean norm of vectors of one number each
            if name == "log_threshold":
                thresholds = parameter[..., living].exp().flatten()[:, None]
                start = torch.as_tensor(living_norm(thresholds)).to(parameter).log()
            parameter.index_fill_(-1, latents, start)


def mean_norm(vectors: Tensor) -> Tensor | float:
    """Of vectors [n, d]; 1 where there are none."""
    return vectors.norm(dim=1).mean() if len(vectors) else 1.0
