"""Gives dead latents new directions: rows that the SAE reconstructs badly.

As in "Towards Monosemanticity" (Bricken et al. 2023, appendix on resampling). Many rows
(the paper's 819,200, `Resampling.candidates`) are put through the SAE as it is, and
each dead latent gets one of them, drawn in proportion to the square of its loss (here
its squared error). The centred row at norm 1 becomes the latent's dictionary vector,
and at `encoder_scale` times the mean norm of the living encoder vectors its encoder
vector; its biases become 0, and Adam forgets all of them. One difference from the
paper: a row is drawn once only, as long as there are enough.

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
from trainer.saes.build import Sae, latents_of
from trainer.saes.scaled_rows import ScaledRows, of_layer
from trainer.saes.unit_rows import mean_norm, unit_rows
from trainer.training.run_stream import next_batch
from trainer.training.weighted_sample import Draw

if TYPE_CHECKING:
    from trainer.training.learner import Learner

STAGE = 41  # a part of the draws' key, so that no other draw shares it
CANDIDATES = 819_200  # rows to draw from, as in the paper


def due(plan: Resampling, step: int, batch: int) -> bool:
    """Return whether latents are resampled after update `step`, counted from 1.

    They are when a multiple of `every` rows is passed: with 1,000 rows and batches of
    400 after updates 3 (1,200), 5 (2,000), 8 (3,200), ...
    """
    passed = step * batch // plan.every
    passed_before = (step - 1) * batch // plan.every
    return passed > passed_before and passed <= plan.times


def dead_latents(plan: Resampling, silent_rows: Tensor) -> Tensor:
    """Return the latents to resample, int64 [n], from how long each is silent, [m]."""
    longest = plan.silent_rows or max(1, plan.every // 2)
    return (silent_rows > longest).nonzero()[:, 0]


def candidates(plan: Resampling, batch: int) -> int:
    """Return how many rows there are to draw from."""
    return plan.candidates or max(batch, min(CANDIDATES, plan.every // 50))


@torch.no_grad()
def resample(stream: Stream, learners: Sequence[Learner]) -> None:
    """Give dead latents new weights, in place, where that is due after an update.

    Not after a run's last update: nothing would train them. Where the stream has no
    more rows the latents stay as they are. All processes of a run call this together.
    """
    renewals = _renewals(learners, stream.spec.batch)
    if not renewals:
        return
    start = stream.state()
    most = max(renewal.n_candidates for renewal in renewals)
    parallel = renewals[0].learner.parallel
    # an epoch at most: its rows would come again, and each can be drawn once
    n_rows = min(most, stream.rows_per_epoch)
    for n_seen in range(0, n_rows, stream.spec.batch):
        batch = next_batch(stream, parallel)
        if batch is None:
            break
        for renewal in renewals:
            if n_seen < renewal.n_candidates:
                renewal.consider(batch, len(stream.sites))
    stream.restore(start)
    for renewal in renewals:
        renewal.finish()


def _renewals(learners: Sequence[Learner], batch_rows: int) -> list[_Renewal]:
    """Return what is due now, of learners that have dead latents."""
    renewals = []
    for learner in learners:
        plan = learner.spec.resample
        if plan is None or learner.step >= learner.steps:
            continue
        if due(plan, learner.step, batch_rows):
            renewals.append(_Renewal(learner, plan, batch_rows))
    return [renewal for renewal in renewals if renewal.n_latents]


class _Renewal:
    """The dead latents of one learner, and the rows that are drawn for them."""

    def __init__(self, learner: Learner, plan: Resampling, batch_rows: int) -> None:
        self.learner = learner
        self._plan = plan
        self._latents = dead_latents(plan, learner.silent_rows)
        self._first, self.n_latents = learner.parallel.latent_positions(
            len(self._latents)
        )
        self.n_candidates = candidates(plan, batch_rows)
        # the step is in the key: each resampling draws anew
        seed = learner.spec.seed
        self._draw = Draw(self.n_latents, seed, STAGE, learner.step)

    def consider(self, batch: Batch, n_sites: int) -> None:
        """Take a batch's rows into the draw."""
        learner = self.learner
        rows = learner.rows(batch.x, batch.layer, batch.target, batch.batch_position)
        difference = learner.reconstruction(rows).float() - rows.wanted
        error = difference.square().flatten(1).sum(dim=1)
        # Sites have the same row ids: of 3 sites, row 5 of layer 2 gets the id 17.
        ids = batch.row * n_sites + batch.layer
        self._draw.add(rows, error.square(), ids)

    def finish(self) -> None:
        """Give the latents the rows drawn for them."""
        learner = self.learner
        parallel = learner.parallel
        drawn = self._draw.result(parallel.all_rows)
        if drawn is None:
            return
        # each latent the row of its number among all dead ones; where there are fewer
        # rows they are used again
        end = self._first + len(self._latents)
        numbers = torch.arange(self._first, end, device=self._latents.device)
        chosen = numbers % len(drawn.key)
        drawn = drawn.map(lambda field: field[chosen])
        rows = ScaledRows(drawn.x, drawn.layer, learner.norms, drawn.target)
        replace(
            learner.sae,
            self._latents,
            rows,
            self._plan.encoder_scale,
            parallel.mean_norm,
        )
        learner.forget(self._latents)


@torch.no_grad()
def replace(
    sae: Sae,
    latents: Tensor,
    rows: ScaledRows,
    encoder_scale: float,
    living_norm: Callable[[Tensor], Tensor | float] = mean_norm,
) -> None:
    """Give latents their directions from rows, in place.

    The decoder gets them at the norm that the kind keeps, the encoder shorter, and
    biases begin anew.

    Args:
        sae: The SAE.
        latents: int64 [n].
        rows: [n], one for each latent.
        encoder_scale: Length of encoder vectors over that of the living ones.
        living_norm: From the vectors [., d] of the living latents here to the mean norm
            of all of them.
    """
    rows = sae.inner_rows(rows)
    inner = latents_of(sae)
    inputs = inner.latent_inputs(rows)
    outputs = rows.wanted - of_layer(inner.b_dec, rows.layer)
    living = torch.ones(inner.n_latents, dtype=torch.bool, device=latents.device)
    living.index_fill_(0, latents, False)
    length: Tensor | float = 1.0
    if not inner.unit_decoder:
        length = living_norm(inner.W_dec[living])
    inner.W_dec[latents] = unit_rows(outputs) * length
    if inner.W_enc is not None:
        # shorter than the living, so that the new ones do not take over their rows
        norm = encoder_scale * living_norm(inner.W_enc[:, living].T)
        directions = unit_rows(inputs)
        inner.W_enc[:, latents] = (directions * norm).T

    def mean_of_living(parameter: Tensor) -> Tensor:
        # the mean of positive numbers is a mean norm of vectors of one number each
        numbers = parameter[..., living].flatten()[:, None]
        return torch.as_tensor(living_norm(numbers)).to(parameter)

    inner.forget_biases(latents, mean_of_living)
