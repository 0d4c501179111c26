"""Refuses what a training spec asks for and would change nothing.

Nobody is to believe that a value did something which it did not.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from schemas.sae import inner_of
from schemas.stream import StreamSpec
from schemas.train import Optimiser, TrainSpec
from trainer.errors import SaeError
from trainer.saes.build import every_kind, latents_kind

# Fields of an SAE's spec that do nothing without another one; what that one is.
_NEEDED_FIELDS = {
    "aux_k": (
        "aux_coefficient",
        (
            "aux_k does nothing without aux_coefficient; give that (1/32 in the paper),"
            " or leave aux_k out"
        ),
    ),
    "similar_above": (
        "decoder_similarity",
        (
            "similar_above does nothing without decoder_similarity; give that, or leave"
            " it out"
        ),
    ),
}
# Fields that tell the layers of a mixture apart.
_PER_LAYER_FIELDS = ("per_layer_bias", "per_layer_threshold")


def check_acts(spec: TrainSpec, n_sites: int, steps: int) -> None:
    """Check that every value of a spec does something.

    Args:
        spec: The run.
        n_sites: Sites that its rows are of.
        steps: Its optimiser steps.

    Raises:
        SaeError: Some do nothing because of the other values; each is named.
    """
    messages = [
        *_of_sae(spec, n_sites),
        *_of_stream(spec),
        *_of_optimiser(spec),
        *_of_resampling(spec, steps),
    ]
    if messages:
        raise SaeError("; ".join(messages))


def _of_sae(spec: TrainSpec, n_sites: int) -> Iterator[str]:
    inner = inner_of(spec.sae)
    given = _given_fields(inner)
    if "expansion" in given and inner.n_latents is not None:
        yield (
            f"expansion does nothing where n_latents ({inner.n_latents}) is given;"
            " leave one of them out"
        )
    for field, (needed, message) in _NEEDED_FIELDS.items():
        if field in given and not getattr(inner, needed):
            yield message
    for field in _PER_LAYER_FIELDS:
        if field in given and n_sites == 1:
            yield (
                f"{field} tells the layers of a mixture apart, and there is one site;"
                " leave it out"
            )


def _given_fields(spec: Any) -> set[str]:
    """Return the fields of a spec that are not at their defaults."""
    given = set()
    for name, field in type(spec).model_fields.items():
        if getattr(spec, name) != field.default:
            given.add(name)
    return given


def _of_stream(spec: TrainSpec) -> Iterator[str]:
    stream = spec.stream
    if stream.dtype != StreamSpec().dtype:
        yield (
            f"stream.dtype {stream.dtype} does nothing in training, which reads"
            " float32; precision: bfloat16 computes so"
        )
    if spec.rows is not None and stream.epochs not in {1, None}:
        yield (
            f"stream.epochs ({stream.epochs}) does nothing where rows is given; leave"
            " one of them out"
        )
    if spec.rows is None and stream.epochs is None:
        yield (
            "stream.epochs: null is for ever, which no training is; give rows, or a"
            " number of epochs"
        )


def _of_optimiser(spec: TrainSpec) -> Iterator[str]:
    inner = inner_of(spec.sae)
    if spec.kernels != "eager" and not latents_kind(spec.sae).sparse:
        *others, last = [kind.name for kind in every_kind() if kind.sparse]
        yield (
            f"kernels: {spec.kernels} is of {', '.join(others)} and {last}, and"
            f" {inner.kind} uses none; leave it out"
        )
    # A penalty that is steered has no schedule either, which `check_l0` says.
    if inner.penalty_field is not None:
        return
    usual = Optimiser()
    for name in ("sparsity_warmup", "sparsity_decay"):
        if getattr(spec.optimiser, name) != getattr(usual, name):
            yield f"{name} is of a penalty, and {inner.kind} has none; leave it out"


def _of_resampling(spec: TrainSpec, steps: int) -> Iterator[str]:
    if spec.resample is None:
        return
    batch = spec.stream.batch
    steps_between = -(-spec.resample.every // batch)  # rounded up
    if steps_between >= steps:
        yield (
            f"resample.every is {spec.resample.every:,} rows, and the run has"
            f" {steps * batch:,}: nothing would be resampled; lower it, or leave"
            " resample out"
        )
