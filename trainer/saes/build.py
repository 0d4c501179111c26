"""From a spec to a module, with the checks that need the width of the data."""

from __future__ import annotations

import torch
from torch import Tensor

from schemas.sae import (
    BatchTopK,
    Crosscoder,
    FlatSpec,
    Gated,
    JumpRelu,
    Matryoshka,
    Nsae,
    ReluL1,
    SaeSpec,
    TopK,
    Transcoder,
)
from trainer.errors import SaeError
from trainer.saes.batch_topk import BatchTopKSae
from trainer.saes.crosscoder import CrosscoderSae
from trainer.saes.gated import GatedSae
from trainer.saes.jumprelu import JumpReluSae
from trainer.saes.matryoshka import MatryoshkaSae
from trainer.saes.mlp_encoder import MlpEncoderSae
from trainer.saes.nsae import NormalizedSae
from trainer.saes.ops import Centre, ScaledRows, Shape, mean
from trainer.saes.relu_l1 import ReluL1Sae
from trainer.saes.topk import TopKSae
from trainer.saes.transcoder import TranscoderSae

FlatSae = (
    ReluL1Sae
    | TopKSae
    | BatchTopKSae
    | MatryoshkaSae
    | NormalizedSae
    | GatedSae
    | JumpReluSae
    | MlpEncoderSae
)
Sae = FlatSae | TranscoderSae | CrosscoderSae

_PRE_ACTIVATION_STD = 0.1  # about; 1 / sqrt(d) at first
# Which axis of a parameter counts latents; the others have none of it.
LATENT_AXIS = {
    "W_dec": 0,
    "W_enc": 1,
    "b_enc": -1,
    "b_gate": -1,
    "b_mag": -1,
    "r_mag": -1,
    "log_threshold": -1,
}


def build(
    spec: SaeSpec, d: int, seed: int = 0, n_sites: int = 1, d_out: int | None = None
) -> Sae:
    """A fresh SAE for activations of width d at n_sites sites. d_out: width of a
    transcoder's target, None for others.

    Raises SaeError where the spec cannot work at that width.
    """
    if (d_out is None) == isinstance(spec, Transcoder):
        raise SaeError(
            f"{spec.kind}: a transcoder, and nothing else, needs the width of a target;"
            f" d_out is {d_out}"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if isinstance(spec, Transcoder):
            if isinstance(spec.inner, ReluL1) and spec.inner.tied:
                raise SaeError(
                    "a transcoder's encoder and decoder are of different sites; set"
                    " `tied` to false"
                )
            inner = _flat(spec.inner, Shape(d, d_out, n_sites), seed)
            assert not isinstance(inner, NormalizedSae | MlpEncoderSae)
            return TranscoderSae(spec, inner)
        if isinstance(spec, Crosscoder):
            return _crosscoder(spec, d, seed, n_sites)
        return _flat(spec, Shape(d, None, n_sites), seed)


def _crosscoder(spec: Crosscoder, d: int, seed: int, n_sites: int) -> CrosscoderSae:
    inner = spec.inner
    if inner.per_layer_bias or (
        isinstance(inner, BatchTopK) and inner.per_layer_threshold
    ):
        raise SaeError(
            "a crosscoder's row has all its layers, and a bias for each; leave the"
            " per_layer_ options out"
        )
    update: dict[str, object] = {"n_latents": inner.size(d)}
    if isinstance(inner, ReluL1):
        update["penalty"] = "decoder_norm"
    made = _flat(
        inner.model_copy(update=update),
        Shape(d * n_sites, None, n_sites, parts=n_sites),
        seed,
    )
    assert isinstance(made, ReluL1Sae | TopKSae | BatchTopKSae | MatryoshkaSae)
    return CrosscoderSae(spec, made)


def _flat(spec: FlatSpec, shape: Shape, seed: int) -> FlatSae:  # noqa: PLR0911 (one per kind)
    _check(spec, shape.d)
    match spec:
        case ReluL1():
            return ReluL1Sae(spec, shape, seed)
        case TopK():
            return TopKSae(spec, shape)
        case BatchTopK():
            return BatchTopKSae(spec, shape)
        case Matryoshka():
            return MatryoshkaSae(spec, shape)
        case Nsae():
            return NormalizedSae(spec, shape, seed)
        case Gated():
            return GatedSae(spec, shape)
        case JumpRelu():
            return JumpReluSae(spec, shape)
        case _:
            return MlpEncoderSae(spec, shape)


def _check(spec: FlatSpec, d: int) -> None:
    n_latents = spec.size(d)
    if n_latents < 1:
        raise SaeError(
            f"expansion {spec.expansion} of d {d} gives {n_latents} latents; wanted at"
            " least 1"
        )
    if isinstance(spec, TopK | BatchTopK | Matryoshka) and spec.k > n_latents:
        raise SaeError(
            f"k is {spec.k}, but the dictionary has {n_latents} latents (d {d}); lower"
            " k or raise expansion"
        )
    if isinstance(spec, ReluL1) and spec.tied and spec.penalty == "decoder_norm":
        raise SaeError(
            "tied with penalty decoder_norm: latents grow with the decoder; use penalty"
            " l1, or untie"
        )
    if isinstance(spec, Matryoshka) and round(spec.prefixes[0] * n_latents) < 1:
        raise SaeError(
            f"the first prefix, {spec.prefixes[0]:.3g} of {n_latents} latents, is"
            " empty; raise it"
        )


def initialise_from(
    sae: Sae, rows: ScaledRows | Tensor, centre: Centre = mean, from_data: bool = True
) -> None:
    """Start at data: decoder bias, directions (random ones if not `from_data`) and the
    encoder's length (`start`).
    """
    sae.initialise(
        rows if isinstance(rows, ScaledRows) else ScaledRows(rows), centre, from_data
    )


@torch.no_grad()
def lift_biases(sae: Sae, latents: Tensor, by: float) -> None:
    """Make some latents fire more often: `latents` bool [m]. A gated one's magnitude
    may be what keeps it at 0.
    """
    inner = latents_of(sae)
    inner.firing_bias.add_(latents, alpha=by)
    if isinstance(inner, GatedSae):
        inner.b_mag.add_(latents, alpha=by)


@torch.no_grad()
def raise_thresholds(sae: Sae, by: Tensor) -> None:
    """Make all latents rarer, or more frequent where `by` is below 0: by so much
    `margins` fall. by: a scalar, or for thresholds that differ by layer [n_sites].
    """
    inner = latents_of(sae)
    if isinstance(inner, JumpReluSae):
        inner.log_threshold.add_(by)
    elif isinstance(inner, BatchTopKSae | MatryoshkaSae):
        inner.threshold.add_(by).clamp_min_(0)
    else:
        inner.firing_bias.sub_(by)


def margin_std(sae: Sae) -> float:
    """About the standard deviation of margins where rows have a mean square of 1."""
    return (
        1.0
        if isinstance(latents_of(sae), JumpReluSae | NormalizedSae)
        else _PRE_ACTIVATION_STD
    )


def latents_of(sae: Sae) -> FlatSae:
    """The part of an SAE that has the latents: inside a transcoder or crosscoder, else
    all of it.
    """
    return sae.inner if isinstance(sae, TranscoderSae | CrosscoderSae) else sae
