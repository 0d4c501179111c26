"""Toy data: rows whose true features are known."""

from __future__ import annotations

from pydantic import Field, model_validator

from schemas.base import Digest, Schema


class FeatureSpec(Schema):
    """The features of toy data, and how they fire (docs/methods.md, section 4).

    A row is the sum of the features that fire on it, each times its magnitude, plus a
    constant bias and noise.
    """

    n_features: int = Field(default=512, gt=0, description="true features, G")
    d: int = Field(default=256, gt=0, description="width of a row")
    l0: float = Field(
        default=5.0, gt=0, description="features that fire on a row, in the mean"
    )
    exponent: float = Field(
        default=0.5,
        ge=0,
        description="a feature's share of rows falls with its rank as rank^-exponent",
    )
    n_topics: int = Field(
        default=16,
        gt=0,
        description="groups of features that fire together; 1: all independent",
    )
    boost: float = Field(
        default=8.0,
        ge=1,
        description="how much more often a feature fires in rows of its own group",
    )
    n_roots: int = Field(
        default=0, ge=0, description="features that are roots of trees; 0: no trees"
    )
    branching: int = Field(
        default=4, gt=0, description="children of a feature in a tree"
    )
    depth: int = Field(default=3, gt=0, description="generations below a root")
    child_share: float = Field(
        default=0.8,
        ge=0,
        le=1,
        description="share of a parent's firings that have a child",
    )
    magnitudes: tuple[float, float] = Field(
        default=(1.0, 1.0),
        description="mean magnitude of the most and of the least frequent feature",
    )
    spread: float = Field(
        default=0.4,
        ge=0,
        description="standard deviation of the logarithm of a magnitude",
    )
    bias: float = Field(default=0.0, ge=0, description="norm of the constant bias")
    noise: float = Field(
        default=0.0, ge=0, description="standard deviation of the noise per dimension"
    )
    seed: int = Field(default=0, ge=0, description="seed of features and rows")

    @property
    def generations(self) -> list[int]:
        """How many features each generation below the roots has."""
        if not self.n_roots:
            return []
        return [self.n_roots * self.branching**i for i in range(1, self.depth + 1)]

    @property
    def n_free(self) -> int:
        """How many features may fire by themselves: those that have no parent."""
        return self.n_features - sum(self.generations)

    @model_validator(mode="after")
    def _room_for_trees(self) -> FeatureSpec:
        # Every second of the first free features is a root.
        if self.n_free < max(1, 2 * self.n_roots):
            raise ValueError(
                f"{self.n_features} features are too few for {self.n_roots} trees of"
                f" depth {self.depth}, which have {sum(self.generations)} children"
            )
        return self


class FeatureRecord(Schema):
    """`features.json` of a store of toy data: what its true features are."""

    format_version: int = Field(default=1, description="version of this record")
    spec: FeatureSpec = Field(description="what the rows are made of")
    site: str = Field(description="the site with the rows")
    content_id: str = Field(description="content id of the store")
    digest: Digest = Field(description="blake3 of `features.safetensors`")
