"""The specs of SAEs, one for each kind; the field `kind` tells them apart.

A penalty is the weight, in the loss, of a sum over latents.
"""

from __future__ import annotations

import functools
import operator
from typing import Annotated, Any, ClassVar, Literal, Self, get_args

from pydantic import (
    Field,
    GetJsonSchemaHandler,
    SerializeAsAny,
    TypeAdapter,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    model_validator,
)

from schemas.base import Schema

PER_LAYER_BIAS = "a decoder bias for each layer that batches mix"
PER_LAYER_THRESHOLD = "thresholds for each layer that batches mix"
THRESHOLD_DECAY = (
    "decay of the running mean of the threshold in training; at the end the threshold"
    " is set exactly"
)
# As many as `k` has by default, so that kinds compare at the same sparsity.
DEFAULT_L0 = 32.0
TARGET_L0 = (
    "mean number of latents that fire in a row, to which the penalty is steered; "
    f"None: {DEFAULT_L0:g}, unless the penalty has a weight of its own"
)
Penalty = Annotated[float, Field(ge=0)]


class FlatKind(Schema):
    """The options that every kind with latents of its own has."""

    expansion: float = Field(
        default=8.0, gt=0, description="dictionary size divided by d"
    )
    n_latents: int | None = Field(
        default=None,
        gt=0,
        description="dictionary size; None: `expansion` times d",
    )

    @classmethod
    def sparsity_fields(cls) -> tuple[str, ...]:
        """Return the names of the fields that set how many latents fire."""
        return ()

    def size(self, d: int) -> int:
        """Return the dictionary size for activations of width `d` (768, 8.0: 6,144)."""
        return self.n_latents or round(self.expansion * d)

    @property
    def latents_per_row(self) -> int | None:
        """The number of active latents per row; None where the kind does not set it."""
        return None

    @property
    def penalty_field(self) -> str | None:
        """The name of the field that has the weight of the sparsity penalty; None for a
        kind without one.
        """
        return None

    @property
    def penalty_weight(self) -> float | None:
        """The sparsity penalty's weight as it is given; None for a kind without one."""
        return None

    @property
    def steered_l0(self) -> float | None:
        """The mean L0 that training steers to; None for a kind without a penalty."""
        return None


class _TopKCommon(FlatKind):
    k: int = Field(default=32, gt=0, description="latents that fire in a row")
    aux_k: int | None = Field(
        default=None,
        gt=0,
        description="dead latents per row in the auxiliary loss AuxK; None: d / 2",
    )
    aux_coefficient: Penalty = Field(
        default=0.0,
        description="weight of AuxK in the loss, 1/32 in the paper; 0: left out",
    )
    per_layer_bias: bool = Field(default=False, description=PER_LAYER_BIAS)

    @classmethod
    def sparsity_fields(cls) -> tuple[str, ...]:
        """Return the names of the fields that set how many latents fire."""
        return ("k",)

    @property
    def latents_per_row(self) -> int:
        """The number of active latents per row."""
        return self.k


class Penalised(FlatKind):
    """A kind whose sparsity comes from a penalty, which is given or steered to an L0.

    `weight` names the field that holds the penalty.
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

    @classmethod
    def sparsity_fields(cls) -> tuple[str, ...]:
        """Return the names of the fields that set how many latents fire."""
        return (cls.weight, "target_l0")

    @property
    def penalty_field(self) -> str:
        """The name of the field that has the weight of the penalty."""
        return self.weight

    @property
    def penalty_weight(self) -> float | None:
        """The penalty, where it is given; None where it is steered."""
        value: float | None = getattr(self, self.weight)
        return value

    @property
    def steered_l0(self) -> float | None:
        """The mean L0 that training steers to; None where the penalty is given."""
        if self.penalty_weight is not None:
            return None
        return self.target_l0 or DEFAULT_L0


class ReluL1(Penalised):
    """ReLU encoder with an L1 penalty, and decoder directions of norm 1.

    The loss is the squared error + l1 * sum of latents
    (docs/methods.md#3-standard-sae-and-stitching-two-of-them).

    With `penalty: decoder_norm` latents are weighted by the norms of their decoder
    directions, which are then free (Anthropic, April 2024). `decoder_similarity` weighs
    a penalty on pairs of similar directions.
    """

    weight: ClassVar[str] = "l1"
    kind: Literal["relu_l1"] = "relu_l1"
    l1: Penalty | None = Field(
        default=None,
        description="penalty on the sum of latents; None: steered to target_l0",
    )
    penalty: Literal["l1", "decoder_norm"] = Field(
        default="l1",
        description="decoder_norm: each latent is weighted by its decoder norm",
    )
    tied: bool = Field(
        default=False, description="the encoder is the transposed decoder"
    )
    decoder_similarity: Penalty = Field(
        default=0.0,
        description=(
            "penalty on cosines between sampled decoder directions; 0: left out"
        ),
    )
    similar_above: float = Field(
        default=0.5, ge=0, lt=1, description="cosine above which it counts"
    )
    per_layer_bias: bool = Field(default=False, description=PER_LAYER_BIAS)


class TopK(_TopKCommon):
    """Keep the k largest pre-activations of each row (Gao et al. 2024).

    The auxiliary loss AuxK teaches latents that have gone dead.
    """

    kind: Literal["topk"] = "topk"


class BatchTopK(_TopKCommon):
    """Keep the k * B largest pre-activations of a batch (Bussmann et al. 2024).

    B is the number of its rows. Outside training a threshold takes the place of the
    choice over a batch.
    """

    kind: Literal["batch_topk"] = "batch_topk"
    threshold_decay: float = Field(
        default=0.98, ge=0, lt=1, description=THRESHOLD_DECAY
    )
    per_layer_threshold: bool = Field(default=False, description=PER_LAYER_THRESHOLD)


class Matryoshka(_TopKCommon):
    """BatchTopK whose nested prefixes each reconstruct the row (Bussmann et al. 2025).

    A prefix is the first so many latents of the dictionary.
    """

    kind: Literal["matryoshka"] = "matryoshka"
    prefixes: tuple[float, ...] = Field(
        default=(1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0),
        description="sizes of the prefixes, as shares of the dictionary",
    )
    threshold_decay: float = Field(
        default=0.98, ge=0, lt=1, description=THRESHOLD_DECAY
    )

    @model_validator(mode="after")
    def _nested(self) -> Matryoshka:
        # Without the whole as last prefix, the last latents would have no loss at all.
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
    """Normalized SAE: latents are tanh(ReLU(.)), with noise in training.

    The decoder is free, and L1 is scaled by norms (docs/methods.md#2-normalized-sae).
    """

    weight: ClassVar[str] = "alpha"
    kind: Literal["nsae"] = "nsae"
    alpha: Penalty | None = Field(
        default=None,
        description=(
            "penalty on the sum of latents, times a squared norm; None: steered to"
            " target_l0"
        ),
    )
    noise: float = Field(
        default=0.1, ge=0, description="standard deviation of the noise before the ReLU"
    )
    norm: Literal["layer", "row"] = Field(
        default="layer",
        description="norm that scales the penalty: the layer's mean, or the row's own",
    )


class Gated(Penalised):
    """Gated SAE: a gate that is penalised, a magnitude that is not.

    From Rajamanoharan et al. 2024, "Improving Dictionary Learning with Gated Sparse
    Autoencoders".
    """

    weight: ClassVar[str] = "l1"
    kind: Literal["gated"] = "gated"
    l1: Penalty | None = Field(
        default=None,
        description="penalty on the sum of gates; None: steered to target_l0",
    )
    per_layer_bias: bool = Field(default=False, description=PER_LAYER_BIAS)


class JumpRelu(Penalised):
    """JumpReLU: learnt thresholds, an L0 penalty, straight-through gradients.

    From Rajamanoharan et al. 2024, "Jumping Ahead".

    `threshold` and `bandwidth` are in units of rows whose mean squared norm is 1, to
    which training scales them.
    """

    weight: ClassVar[str] = "l0"
    kind: Literal["jumprelu"] = "jumprelu"
    l0: Penalty | None = Field(
        default=None,
        description=(
            "penalty on the number of latents that fire; None: steered to target_l0"
        ),
    )
    threshold: float | None = Field(
        default=None,
        gt=0,
        description="thresholds at the start; None: from the data",
    )
    bandwidth: float = Field(
        default=0.1,
        gt=0,
        description="width of the rectangle kernel that gradients of thresholds use",
    )
    per_layer_bias: bool = Field(default=False, description=PER_LAYER_BIAS)
    per_layer_threshold: bool = Field(default=False, description=PER_LAYER_THRESHOLD)


class MlpEncoder(Penalised):
    """An encoder with one hidden layer, ReLU and L1, and decoder directions of norm 1.

    See docs/methods.md#5-other-encoders-and-features-across-layers.
    """

    weight: ClassVar[str] = "l1"
    kind: Literal["mlp_encoder"] = "mlp_encoder"
    l1: Penalty | None = Field(
        default=None,
        description="penalty on the sum of latents; None: steered to target_l0",
    )
    hidden: float = Field(
        default=2.0, gt=0, description="width of the hidden layer divided by d"
    )
    per_layer_bias: bool = Field(default=False, description=PER_LAYER_BIAS)


# An inner kind must work where the reconstruction is not of its own input (transcoder),
# or where a row has several sites (crosscoder).
FlatSpec = ReluL1 | TopK | BatchTopK | Matryoshka | Nsae | Gated | JumpRelu | MlpEncoder
TranscoderInner = ReluL1 | TopK | BatchTopK | Matryoshka | Gated | JumpRelu
CrosscoderInner = ReluL1 | TopK | BatchTopK | Matryoshka


class Transcoder(Schema):
    """Latents of one site that reconstruct another site of the same token.

    `inner` says which latents and which loss. `skip` adds a linear map from input to
    output (Paulo et al. 2025).
    """

    kind: Literal["transcoder"] = "transcoder"
    inner: Annotated[TranscoderInner, Field(discriminator="kind")] = Field(
        description="the kind of its latents, and that kind's options"
    )
    skip: bool = Field(default=False, description="add a linear map to the output")

    def size(self, d: int) -> int:
        """Return the dictionary size for inputs of width `d`."""
        return self.inner.size(d)


class Crosscoder(Schema):
    """One set of latents for several sites of a token (Lindsey et al. 2024).

    The encoder sums over sites, the decoder has a part for each. With `relu_l1` the
    penalty weighs a latent by the sum over sites of its decoder norms.
    """

    kind: Literal["crosscoder"] = "crosscoder"
    inner: Annotated[CrosscoderInner, Field(discriminator="kind")] = Field(
        description="the kind of its latents, and that kind's options"
    )

    def size(self, d: int) -> int:
        """Return the dictionary size for sites of width `d`."""
        return self.inner.size(d)


def inner_of(sae: FlatSpec | Transcoder | Crosscoder) -> FlatSpec:
    """Return the spec of the latents: the inner one where there is one, else `sae`."""
    return sae.inner if isinstance(sae, Transcoder | Crosscoder) else sae


_SPECS_OF_UNION: tuple[type[Schema], ...] = (
    *get_args(FlatSpec),
    Transcoder,
    Crosscoder,
)
# Specs of kinds that other packages add, by kind. A union cannot grow once it is made.
_more_specs: dict[str, type[Schema]] = {}


def register_spec(spec: type[Schema]) -> None:
    """Let `SaeSpec` hold a kind's options; those of its union it can hold already."""
    if spec not in _SPECS_OF_UNION:
        _more_specs[kind_name(spec)] = spec


def kind_name(spec: type[Schema]) -> str:
    """Return what `sae.kind` calls the kind whose options a schema has."""
    return str(spec.model_fields["kind"].default)


def every_spec() -> tuple[type[Schema], ...]:
    """Return the schemas of all kinds: those of the union, then those registered."""
    return (*_SPECS_OF_UNION, *_more_specs.values())


class _SchemaOfEveryKind:
    """Lets a field's JSON schema have the kinds that are registered, too."""

    def __get_pydantic_json_schema__(
        self, core_schema: Any, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        """Return the JSON schema of the field, from which help and messages take the
        names of the kinds and of their fields.
        """
        if _more_specs:
            core_schema = _every_kind().core_schema
        return handler(core_schema)


def _registered(value: object, of_union: ValidatorFunctionWrapHandler) -> object:
    """Validate options; where kinds are registered, as those of any kind there is."""
    # A union of all kinds and not the one kind's schema, so that an error has the same
    # location and names the same kinds whichever file a kind is from.
    if _more_specs:
        return _every_kind().validate_python(value)
    return of_union(value)


def _every_kind() -> TypeAdapter[Any]:
    """Return what validates the options of any kind, told apart by `kind`."""
    return _union_of(every_spec())


@functools.cache
def _union_of(specs: tuple[type[Schema], ...]) -> TypeAdapter[Any]:
    union: Any = functools.reduce(operator.or_, specs)
    every_kind: Any = Annotated[union, Field(discriminator="kind")]
    return TypeAdapter(every_kind)


SaeSpec = Annotated[
    SerializeAsAny[FlatSpec | Transcoder | Crosscoder],
    Field(discriminator="kind"),
    WrapValidator(_registered),
    _SchemaOfEveryKind(),
]


def fields_of_sparsity() -> dict[str, tuple[str, ...]]:
    """Return the fields that set the sparsity of each kind, by the kind's name.

    Kinds that have none are left out, and so are `transcoder` and `crosscoder`, which
    have those of their inner kind. That of topk is ("k",), of relu_l1 ("l1",
    "target_l0").
    """
    return {
        kind_name(spec): spec.sparsity_fields()
        for spec in every_spec()
        if issubclass(spec, FlatKind) and spec.sparsity_fields()
    }
