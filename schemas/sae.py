"""One spec per kind of SAE; a union discriminated on `kind`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from schemas.base import Schema


class _Common(Schema):
    expansion: float = Field(default=8.0, gt=0, description="dictionary size over d")
    n_latents: int | None = Field(default=None, gt=0, description="overrides `expansion`")

    def size(self, d: int) -> int:
        """Dictionary size for activations of width `d`."""
        return self.n_latents or round(self.expansion * d)


class ReluL1(_Common):
    """ReLU encoder, unit-norm decoder, loss = squared error + l1 * sum of latents (methods, sections 2 and 3)."""

    kind: Literal["relu_l1"] = "relu_l1"
    l1: float = Field(default=1e-3, ge=0)
    tied: bool = Field(default=False, description="encoder = decoder transposed")


class TopK(_Common):
    """Keep the k largest pre-activations (Gao et al. 2024), with AuxK for latents that have gone dead."""

    kind: Literal["topk"] = "topk"
    k: int = Field(default=32, gt=0)
    aux_k: int | None = Field(default=None, gt=0, description="dead latents per row in AuxK; None: d / 2")
    aux_coefficient: float = Field(default=1 / 32, ge=0)


SaeSpec = Annotated[ReluL1 | TopK, Field(discriminator="kind")]
