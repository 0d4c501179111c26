"""One spec per kind of SAE; a union discriminated on `kind`. Penalties are weights of
terms summed over latents.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from schemas.base import Schema

PER_LAYER_BIAS = "a decoder bias for each layer of a mixture"
PER_LAYER_THRESHOLD = "thresholds for each layer of a mixture"
THRESHOLD_DECAY = (
    "decay of the running mean of the threshold while training; at the end it is set"
    " exactly"
)
DEFAULT_L0 = 32.0
TARGET_L0 = (
    "mean active latents per row that the penalty is steered to; "
    f"None: {DEFAULT_L0:g}, unless the penalty has a weight of its own"
)
Penalty = Annotated[float, Field(ge=0)]


class _Common(Schema):
    expansion: float = Field(default=8.0, gt=0, description="dictionary size over d")
    n_latents: int | None = Field(
        default=None, gt=0, description="overrides `expansion`"
    )

    def size(self, d: int) -> int:
        """Dictionary size for activations of width `d`."""
        return self.n_latents or round(self.expansion * d)


class _TopKCommon(_Common):
    k: int = Field(default=32, gt=0, description="latents per row")
    aux_k: int | None = Field(
        default=None, gt=0, description="dead latents per row in AuxK; None: d / 2"
    )
    aux_coefficient: Penalty = Field(
        default=0.0, description="weight of AuxK, 1/32 in the paper; 0: left out"
    )
    per_layer_bias: bool = Field(default=False, description=PER_LAYER_BIAS)


class Penalised(_Common):
    """A kind whose sparsity is a penalty: `weight` names its weight. Either that is
    given, or it is steered.
    """

    weight: ClassVar[str]
    target_l0: float | None = Field(default=None, gt=0, description=TARGET_L0)

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if self.target_l0 is not None and self.penalty_weight is not None:
            raise ValueError(
                f"{self.weight} and target_l0 exclude each other: a weight, or the L0"
                " it is steered to"
            )
        return self

    @property
    def penalty_weight(self) -> float | None:
        """The penalty's weight as it is given; None where it is steered."""
        value: float | None = getattr(self, self.weight)
        return value

    @property
    def steered_l0(self) -> float | None:
        """The mean L0 that training steers to; None where the penalty's weight is
        given.
        """
        return None if self.penalty_weight is not None else self.target_l0 or DEFAULT_L0


class ReluL1(Penalised):
    """ReLU encoder, loss = squared error + l1 * sum of latents, decoder rows at norm 1
    (methods, sections 2 and 3).

    With `penalty: decoder_norm` latents are weighted by their decoder norms, which are
    then free (Anthropic, April 2024). `decoder_similarity` weighs a penalty on decoder
    cosines above `similar_above`, over sampled pairs.
    """

    weight: ClassVar[str] = "l1"
    kind: Literal["relu_l1"] = "relu_l1"
    l1: Penalty | None = Field(
        default=None,
        description="weight of the sum of latents; None: steered to target_l0",
    )
    penalty: Literal["l1", "decoder_norm"] = "l1"
    tied: bool = Field(default=False, description="encoder = decoder transposed")
    decoder_similarity: Penalty = 0.0
    similar_above: float = Field(default=0.5, ge=0, lt=1)
    per_layer_bias: bool = Field(default=False, description=PER_LAYER_BIAS)


class TopK(_TopKCommon):
    """Keep the k largest pre-activations of each row (Gao et al. 2024), with AuxK for
    latents that have gone dead.
    """

    kind: Literal["topk"] = "topk"


class BatchTopK(_TopKCommon):
    """Keep the k * B largest pre-activations of a batch (Bussmann et al. 2024); outside
    training, a threshold.
    """

    kind: Literal["batch_topk"] = "batch_topk"
    threshold_decay: float = Field(
        default=0.98, ge=0, lt=1, description=THRESHOLD_DECAY
    )
    per_layer_threshold: bool = Field(default=False, description=PER_LAYER_THRESHOLD)


class Matryoshka(_TopKCommon):
    """BatchTopK whose nested prefixes of the dictionary each reconstruct the row
    (Bussmann et al. 2025).
    """

    kind: Literal["matryoshka"] = "matryoshka"
    prefixes: tuple[float, ...] = Field(
        default=(1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0), description="shares of the latents"
    )
    threshold_decay: float = Field(
        default=0.98, ge=0, lt=1, description=THRESHOLD_DECAY
    )

    @model_validator(mode="after")
    def _nested(self) -> Matryoshka:
        shares = self.prefixes
        if (
            not shares
            or list(shares) != sorted(set(shares))
            or shares[0] <= 0
            or shares[-1] != 1
        ):
            raise ValueError(
                f"prefixes {shares}: wanted shares that ascend from above 0 and end"
                " with 1.0"
            )
        return self


class Nsae(Penalised):
    """Normalized SAE (methods, section 2): tanh(ReLU(.)) with noise in training, free
    decoder, L1 scaled by norms.
    """

    weight: ClassVar[str] = "alpha"
    kind: Literal["nsae"] = "nsae"
    alpha: Penalty | None = Field(
        default=None,
        description=(
            "the weight of L1 is alpha times a squared norm; None: steered to target_l0"
        ),
    )
    noise: float = Field(
        default=0.1, ge=0, description="standard deviation of the noise before the ReLU"
    )
    norm: Literal["layer", "row"] = Field(
        default="layer", description="the layer's mean norm, or the row's own"
    )


class Gated(Penalised):
    """Gated SAE (Rajamanoharan et al. 2024): a gate that is penalised, a magnitude that
    is not.
    """

    weight: ClassVar[str] = "l1"
    kind: Literal["gated"] = "gated"
    l1: Penalty | None = Field(
        default=None,
        description="weight of the sum of gates; None: steered to target_l0",
    )
    per_layer_bias: bool = Field(default=False, description=PER_LAYER_BIAS)


class JumpRelu(Penalised):
    """JumpReLU (Rajamanoharan et al. 2024): learnt thresholds, L0 penalty,
    straight-through gradients.

    `threshold` and `bandwidth` are in the units of rows whose mean squared norm is 1,
    which training sees.
    """

    weight: ClassVar[str] = "l0"
    kind: Literal["jumprelu"] = "jumprelu"
    l0: Penalty | None = Field(
        default=None,
        description=(
            "weight of the number of active latents; None: steered to target_l0"
        ),
    )
    threshold: float | None = Field(
        default=None,
        gt=0,
        description="where the thresholds start; None: from the data",
    )
    bandwidth: float = Field(
        default=0.1, gt=0, description="width of the rectangle kernel"
    )
    per_layer_bias: bool = Field(default=False, description=PER_LAYER_BIAS)
    per_layer_threshold: bool = Field(default=False, description=PER_LAYER_THRESHOLD)


class MlpEncoder(Penalised):
    """An encoder with one hidden layer, a linear decoder of norm 1, ReLU and L1
    (methods, section 5).
    """

    weight: ClassVar[str] = "l1"
    kind: Literal["mlp_encoder"] = "mlp_encoder"
    l1: Penalty | None = Field(
        default=None,
        description="weight of the sum of latents; None: steered to target_l0",
    )
    hidden: float = Field(
        default=2.0, gt=0, description="width of the hidden layer over d"
    )
    per_layer_bias: bool = Field(default=False, description=PER_LAYER_BIAS)


FlatSpec = ReluL1 | TopK | BatchTopK | Matryoshka | Nsae | Gated | JumpRelu | MlpEncoder
TranscoderInner = ReluL1 | TopK | BatchTopK | Matryoshka | Gated | JumpRelu
CrosscoderInner = ReluL1 | TopK | BatchTopK | Matryoshka


class Transcoder(Schema):
    """Latents of one site that reconstruct another site of the same token; `inner` says
    which latents and which loss.

    `skip` adds a linear map from input to output (Paulo et al. 2025).
    """

    kind: Literal["transcoder"] = "transcoder"
    inner: Annotated[TranscoderInner, Field(discriminator="kind")]
    skip: bool = False

    def size(self, d: int) -> int:
        """Dictionary size for inputs of width `d`."""
        return self.inner.size(d)


class Crosscoder(Schema):
    """One set of latents for several sites of a token (Lindsey et al. 2024).

    The encoder sums over sites, the decoder has a part for each. With `relu_l1` the
    penalty weighs a latent by the sum over sites of its decoder norms.
    """

    kind: Literal["crosscoder"] = "crosscoder"
    inner: Annotated[CrosscoderInner, Field(discriminator="kind")]

    def size(self, d: int) -> int:
        """Dictionary size for sites of width `d`."""
        return self.inner.size(d)


def inner_of(sae: FlatSpec | Transcoder | Crosscoder) -> FlatSpec:
    """The spec of the latents: that inside a transcoder or crosscoder, else the spec
    itself.
    """
    return sae.inner if isinstance(sae, Transcoder | Crosscoder) else sae


SaeSpec = Annotated[FlatSpec | Transcoder | Crosscoder, Field(discriminator="kind")]

SPARSITY: dict[str, tuple[str, ...]] = {
    **{
        str(one.model_fields["kind"].default): ("k",)
        for one in (TopK, BatchTopK, Matryoshka)
    },
    **{
        str(one.model_fields["kind"].default): (one.weight, "target_l0")
        for one in (ReluL1, Nsae, Gated, JumpRelu, MlpEncoder)
    },
}
"""What sets the sparsity of each kind, by its name; `transcoder` and `crosscoder` have
their inner kind's.
"""
