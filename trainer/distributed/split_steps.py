"""Training steps of a dictionary split by latents: the same loss in every process,
gradients for its own latents.

`maps` has the two maps between the parts, `sparse_steps` the TopK kinds. What is not by
latent (the decoder's bias, an encoder's hidden layer, a transcoder's skip) is in all
processes, each of which computes its whole gradient.
"""

from __future__ import annotations

import torch
from torch import Tensor

from schemas.sae import (
    BatchTopK,
    Crosscoder,
    FlatSpec,
    Matryoshka,
    SaeSpec,
    TopK,
    Transcoder,
)
from trainer.distributed.autograd_collectives import shared, summed
from trainer.distributed.processes import World
from trainer.distributed.split_topk_steps import choose, step_of, top_k_step
from trainer.saes.batch_topk import BatchTopKSae
from trainer.saes.build import FlatSae, Sae
from trainer.saes.crosscoder import CrosscoderSae
from trainer.saes.gated import GatedSae
from trainer.saes.jumprelu import Jump, JumpReluSae
from trainer.saes.matryoshka import MatryoshkaSae
from trainer.saes.mlp_encoder import MlpEncoderSae
from trainer.saes.nsae import NormalizedSae
from trainer.saes.ops import (
    Penalty,
    ScaledRows,
    Step,
    encoder_input,
    of_layer,
    squared_error,
)
from trainer.saes.relu_l1 import ReluL1Sae
from trainer.saes.topk import TopKSae
from trainer.saes.transcoder import TranscoderSae, without

# the first that is here, and the number in the whole dictionary
Latents = tuple[int, int]


def training_step(
    sae: Sae,
    spec: SaeSpec,
    world: World,
    latents: Latents,
    rows: ScaledRows,
    penalty: Penalty,
    dead: Tensor,
) -> Step:
    """The architecture's own training step, of this process's latents; `spec` is that
    of the whole dictionary.

    `dead` bool [m] and `Step.fired` are of this process's latents, the other fields of
    all.
    """
    if isinstance(sae, TranscoderSae) and isinstance(spec, Transcoder):
        skipped = sae.skipped(rows)
        step = _flat(
            sae.inner, spec.inner, world, latents, without(rows, skipped), penalty, dead
        )
        return (
            step
            if skipped is None
            else step._replace(reconstruction=step.reconstruction + skipped)
        )
    if isinstance(sae, CrosscoderSae) and isinstance(spec, Crosscoder):
        step = _flat(
            sae.inner, spec.inner, world, latents, sae.inner_rows(rows), penalty, dead
        )
        return step._replace(
            reconstruction=step.reconstruction.view(-1, sae.n_sites, sae.d)
        )
    assert not isinstance(sae, TranscoderSae | CrosscoderSae)
    assert not isinstance(spec, Transcoder | Crosscoder)
    return _flat(sae, spec, world, latents, rows, penalty, dead)


def selected(sae: Sae, spec: SaeSpec, world: World, rows: ScaledRows) -> ScaledRows:
    """As `training.micro.selected`, of this process's latents."""
    inner, whole = (
        (sae.inner, spec.inner)
        if isinstance(spec, Transcoder | Crosscoder)
        else (sae, spec)
    )
    if not isinstance(inner, BatchTopKSae | MatryoshkaSae) or not isinstance(
        whole, BatchTopK | Matryoshka
    ):
        return rows
    flat = sae.inner_rows(rows) if isinstance(sae, CrosscoderSae) else rows
    return rows._replace(chosen=choose(inner, whole, world, flat))


def _flat(
    sae: FlatSae,
    spec: FlatSpec,
    world: World,
    latents: Latents,
    rows: ScaledRows,
    penalty: Penalty,
    dead: Tensor,
) -> Step:
    match sae, spec:
        case (
            TopKSae() | BatchTopKSae() | MatryoshkaSae(),
            TopK() | BatchTopK() | Matryoshka(),
        ):
            return top_k_step(sae, spec, world, rows, dead, latents)
        case ReluL1Sae(), _:
            return _relu_l1(sae, world, latents, rows, penalty)
        case JumpReluSae(), _:
            return _jumprelu(sae, world, rows, penalty)
        case GatedSae(), _:
            return _gated(sae, world, rows, penalty)
        case MlpEncoderSae(), _:
            return _mlp_encoder(sae, world, rows, penalty)
        case NormalizedSae(), _:
            return _nsae(sae, world, latents, rows, penalty)
    raise AssertionError(f"the SAE is no {spec.kind}")


def _relu_l1(
    sae: ReluL1Sae, world: World, at: Latents, rows: ScaledRows, penalty: Penalty
) -> Step:
    inputs = encoder_input(rows.x, shared(sae.b_dec, world), rows.layer, sae.shape)
    latents = (inputs @ sae.encoder + sae.b_enc).relu()
    reconstruction = summed(latents @ sae.W_dec, world) + of_layer(
        sae.b_dec, rows.layer
    )
    weighted = latents if sae.spec.penalty == "l1" else latents * sae.latent_norms
    step = _with_l1(penalty, latents, reconstruction, weighted, world, rows)
    if sae.draws is None:
        return step
    step.parts["similarity"] = sae.similarity(
        _rows_of(sae.W_dec, sae.sampled(sae.draws, at[1]), at[0], world)
    )
    return step._replace(
        loss=step.loss + sae.spec.decoder_similarity * step.parts["similarity"]
    )


def _rows_of(part: Tensor, chosen: Tensor, first: int, world: World) -> Tensor:
    """ScaledRows `chosen` of the whole of a tensor, of which each process has a part
    that begins with row `first`.
    """
    local = chosen - first
    here = (local >= 0) & (local < len(part))
    own = part.index_select(0, local.clamp(0, len(part) - 1))
    return summed(torch.where(here[:, None], own, 0.0), world)


def _mlp_encoder(
    sae: MlpEncoderSae, world: World, rows: ScaledRows, penalty: Penalty
) -> Step:
    """The hidden layer is not split: its gradient is summed where the latents begin."""
    hidden = (
        encoder_input(rows.x, sae.b_dec, rows.layer, sae.shape) @ sae.W_hidden
        + sae.b_hidden
    ).relu()
    latents = (shared(hidden, world) @ sae.W_enc + sae.b_enc).relu()
    reconstruction = summed(latents @ sae.W_dec, world) + of_layer(
        sae.b_dec, rows.layer
    )
    return _with_l1(penalty, latents, reconstruction, latents, world, rows)


def _with_l1(
    weight: Penalty,
    latents: Tensor,
    reconstruction: Tensor,
    weighted: Tensor,
    world: World,
    rows: ScaledRows,
) -> Step:
    parts = {
        "mse": squared_error(rows.wanted, reconstruction),
        "l1": summed(weighted.sum(dim=-1).mean(), world),
    }
    loss = parts["mse"] + weight * parts["l1"]
    return step_of(loss, reconstruction, _fired(latents), parts, world)


def _jumprelu(
    sae: JumpReluSae, world: World, rows: ScaledRows, penalty: Penalty
) -> Step:
    inputs = encoder_input(rows.x, shared(sae.b_dec, world), rows.layer, sae.shape)
    threshold = of_layer(sae.threshold, rows.layer)
    pre = inputs @ sae.W_enc + sae.b_enc
    latents, count, fired = Jump.apply(pre, threshold, sae.spec.bandwidth)  # type: ignore[no-untyped-call]
    reconstruction = summed(latents @ sae.W_dec, world) + of_layer(
        sae.b_dec, rows.layer
    )
    mse, count = squared_error(rows.wanted, reconstruction), summed(count, world)
    loss = mse + penalty * count
    return step_of(loss, reconstruction, fired, {"mse": mse}, world)


def _gated(sae: GatedSae, world: World, rows: ScaledRows, penalty: Penalty) -> Step:
    gate = (
        encoder_input(rows.x, shared(sae.b_dec, world), rows.layer, sae.shape)
        @ sae.W_enc
        + sae.b_gate
    )
    opened, latents = gate.relu(), sae.activate(gate)
    both = summed(
        torch.stack([latents @ sae.W_dec, opened @ sae.W_dec.detach()]), world
    )
    reconstruction = both[0] + of_layer(sae.b_dec, rows.layer)
    frozen = both[1] + of_layer(sae.b_dec.detach(), rows.layer)
    parts = {
        "mse": squared_error(rows.wanted, reconstruction),
        "l1": summed(opened.sum(dim=-1).mean(), world),
        "aux": squared_error(rows.wanted, frozen),
    }
    loss = parts["mse"] + penalty * parts["l1"] + parts["aux"]
    return step_of(loss, reconstruction, _fired(latents), parts, world)


def _nsae(
    sae: NormalizedSae,
    world: World,
    latents: Latents,
    rows: ScaledRows,
    penalty: Penalty,
) -> Step:
    codes = sae.activate(sae.noisy(rows.x @ sae.W_enc + sae.b_enc, rows, latents))
    reconstruction = summed(codes @ sae.W_dec, world)
    l1 = summed((sae.squared_norms(rows) * codes.sum(dim=-1)).mean(), world)
    parts = {"mse": squared_error(rows.x, reconstruction), "l1": l1}
    loss = parts["mse"] + penalty * l1
    return step_of(loss, reconstruction, _fired(codes), parts, world)


def _fired(latents: Tensor) -> Tensor:
    return (latents.detach() > 0).sum(dim=0)
