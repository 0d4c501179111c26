"""What a training spec asks for and would change nothing. It is refused, so that nobody
believes that it did.
"""

from __future__ import annotations

from collections.abc import Iterator

from schemas.sae import Penalised, ReluL1, inner_of
from schemas.stream import StreamSpec
from schemas.train import Optimiser, TrainSpec
from trainer.errors import SaeError


def check_acts(spec: TrainSpec, n_sites: int, steps: int) -> None:
    """Raises SaeError that names each value which no other value of the spec lets act."""
    found = [*_of_sae(spec, n_sites), *_of_stream(spec), *_of_training(spec, steps)]
    if found:
        raise SaeError("; ".join(found))


def _of_sae(spec: TrainSpec, n_sites: int) -> Iterator[str]:
    inner = inner_of(spec.sae)
    usual = {name: field.default for name, field in type(inner).model_fields.items()}

    def given(name: str) -> bool:
        return name in usual and getattr(inner, name) != usual[name]

    if given("expansion") and inner.n_latents is not None:
        yield (
            f"expansion does nothing where n_latents ({inner.n_latents}) is given;"
            " leave one of them out"
        )
    if given("aux_k") and not getattr(inner, "aux_coefficient", 0):
        yield (
            "aux_k does nothing without aux_coefficient; give that (1/32 in the paper),"
            " or leave aux_k out"
        )
    if (
        given("similar_above")
        and isinstance(inner, ReluL1)
        and not inner.decoder_similarity
    ):
        yield (
            "similar_above does nothing without decoder_similarity; give that, or leave"
            " it out"
        )
    for name in ("per_layer_bias", "per_layer_threshold"):
        if given(name) and n_sites == 1:
            yield (
                f"{name} tells the layers of a mixture apart, and there is one site;"
                " leave it out"
            )


def _of_stream(spec: TrainSpec) -> Iterator[str]:
    own = spec.stream
    if own.dtype != StreamSpec().dtype:
        yield (
            f"stream.dtype {own.dtype} does nothing in training, which reads float32;"
            " precision: bfloat16 computes so"
        )
    if spec.rows is not None and own.epochs not in {1, None}:
        yield (
            f"stream.epochs ({own.epochs}) does nothing where rows is given; leave one"
            " of them out"
        )
    if spec.rows is None and own.epochs is None:
        yield (
            "stream.epochs: null is for ever, which no training is; give rows, or a"
            " number of epochs"
        )


def _of_training(spec: TrainSpec, steps: int) -> Iterator[str]:
    inner, plan, usual = inner_of(spec.sae), spec.optimiser, Optimiser()
    if not isinstance(inner, Penalised):
        for name in ("sparsity_warmup", "sparsity_decay"):
            if getattr(plan, name) != getattr(usual, name):
                yield f"{name} is of a penalty, and {inner.kind} has none; leave it out"
    elif spec.kernels != "eager":
        yield (
            f"kernels: {spec.kernels} is of topk, batch_topk and matryoshka, and"
            f" {inner.kind} uses none; leave it out"
        )
    if (
        spec.resample is not None
        and -(-spec.resample.every // spec.stream.batch) >= steps
    ):
        yield (
            f"resample.every is {spec.resample.every:,} rows, and the run has"
            f" {steps * spec.stream.batch:,}: nothing would be resampled; lower it, or"
            " leave resample out"
        )
