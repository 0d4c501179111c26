"""New directions for dead latents, as in "Towards Monosemanticity" (Bricken et al. 2023, appendix on resampling).

Each dead latent gets a row of the batch, drawn in proportion to the square of its loss (here its squared error). The
centred row at norm 1 becomes the latent's dictionary vector, and at `encoder_scale` times the mean norm of the living
encoder vectors its encoder vector; its biases become 0, and Adam forgets all of them. Two differences from the paper:
candidates are the rows of that step's batch, and a row is drawn once only, as long as there are enough.

Draws are a function of the seed and the step: a resumed run makes the same ones.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from schemas.train import Resampling, TrainSpec
from trainer.saes.build import Sae
from trainer.saes.crosscoder import CrosscoderSae
from trainer.saes.jumprelu import JumpReluSae
from trainer.saes.mlp_encoder import MlpEncoderSae
from trainer.saes.ops import Rows, encoder_input, of_layer, unit_rows
from trainer.saes.transcoder import TranscoderSae

if TYPE_CHECKING:
    from trainer.distributed.parallel import Parallel

STAGE = 41
LATENT_AXIS = {"W_dec": 0, "W_enc": 1, "b_enc": -1, "b_gate": -1, "b_mag": -1, "r_mag": -1, "log_threshold": -1}


def due(plan: Resampling, step: int, batch: int) -> bool:
    """Whether latents are resampled behind update `step`, counted from 1: when a multiple of `every` rows is passed."""
    now, before = step * batch // plan.every, (step - 1) * batch // plan.every
    return now > before and now <= plan.times


def dead_latents(plan: Resampling, silent_rows: Tensor) -> Tensor:
    """int64: the latents to resample."""
    return (silent_rows > (plan.silent_rows or max(1, plan.every // 2))).nonzero()[:, 0]


@torch.no_grad()
def resample(
    spec: TrainSpec,
    sae: Sae,
    optimiser: torch.optim.Optimizer,
    rows: Rows,
    reconstruction: Tensor,
    latents: Tensor,
    step: int,
    parallel: Parallel | None = None,
) -> None:
    """Give the latents [n] new weights from rows and their reconstructions, in place, with Adam's moments at 0.

    parallel: processes that all call this, with the same rows, and each with its own latents where these are split.
    """
    assert spec.resample is not None
    first, n = (0, len(latents)) if parallel is None else parallel.places(len(latents))
    if not n:
        return
    loss = (reconstruction.float() - rows.wanted).square().flatten(1).sum(dim=1)
    chosen = _draw(loss, n, spec.seed, step)[first : first + len(latents)]
    rows = rows._replace(
        x=rows.x[chosen],
        layer=None if rows.layer is None else rows.layer[chosen],
        target=None if rows.target is None else rows.target[chosen],
    )
    replace(sae, latents, rows, spec.resample.encoder_scale, mean_norm if parallel is None else parallel.mean_norm)
    inner = sae.inner if isinstance(sae, CrosscoderSae | TranscoderSae) else sae
    for name, parameter in inner.named_parameters():
        if name in LATENT_AXIS:
            for value in optimiser.state[parameter].values():
                if value.shape == parameter.shape:  # the moments, not the number of updates
                    value.index_fill_(LATENT_AXIS[name], latents, 0.0)


def _draw(loss: Tensor, n: int, seed: int, step: int) -> Tensor:
    """Rows [n] with probability proportional to loss squared; each once while there are enough of them."""
    key = np.random.SeedSequence([seed, STAGE, step]).generate_state(1, np.uint64)
    generator = torch.Generator().manual_seed(int(key[0] >> np.uint64(1)))
    weight = loss.double().cpu().square()
    if not (weight.isfinite().all() and weight.sum() > 0):
        weight = torch.ones_like(weight)
    again = n > int((weight > 0).sum())
    return torch.multinomial(weight, n, replacement=again, generator=generator).to(loss.device)


@torch.no_grad()
def replace(
    sae: Sae,
    latents: Tensor,
    rows: Rows,
    encoder_scale: float,
    living_norm: Callable[[Tensor], Tensor | float] | None = None,
) -> None:
    """Latents [n] take their directions from rows [n]: decoder at the norm the kind keeps, small encoder, no bias.

    living_norm: mean norm of the vectors [., d] of all living latents, from those that are here; None: they are all.
    """
    living_norm = living_norm or mean_norm
    if isinstance(sae, CrosscoderSae | TranscoderSae):
        rows, sae = sae.inner_rows(rows), sae.inner
    inputs = encoder_input(rows.x, sae.b_dec, rows.layer, sae.shape)
    if isinstance(sae, MlpEncoderSae):  # a latent's own weights are those behind the hidden layer
        inputs = (inputs @ sae.W_hidden + sae.b_hidden).relu()
    outputs = rows.wanted - of_layer(sae.b_dec, rows.layer)
    living = torch.ones(sae.n_latents, dtype=torch.bool, device=latents.device).index_fill_(0, latents, False)
    length = 1.0 if sae.unit_decoder else living_norm(sae.W_dec[living])
    sae.W_dec[latents] = unit_rows(outputs) * length
    if sae.W_enc is not None:
        norm = encoder_scale * living_norm(sae.W_enc[:, living].T)
        sae.W_enc[:, latents] = (unit_rows(inputs) * norm).T
    for name, parameter in sae.named_parameters():
        if LATENT_AXIS.get(name) == -1:
            start = float(np.log(sae.spec.threshold)) if isinstance(sae, JumpReluSae) and name == "log_threshold" else 0
            parameter.index_fill_(-1, latents, start)


def mean_norm(vectors: Tensor) -> Tensor | float:
    """Of vectors [n, d]; 1 where there are none."""
    return vectors.norm(dim=1).mean() if len(vectors) else 1.0
