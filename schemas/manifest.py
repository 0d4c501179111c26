"""The records of a store: blocks, units, norm statistics, manifest.
`docs/FORMAT.md` is the normative text.
"""

from __future__ import annotations

import math
from typing import Any, Literal

from pydantic import Field, model_validator

from schemas.base import Digest, Schema
from schemas.harvest import HarvestSpec, Layout, Minor, ModelInfo, Numerics, as_before
from schemas.source import Imported, Site

FORMAT_VERSION = 1
FORMAT_MINOR = 1
HELD_OUT_EVERY = 20
QUANTILES = (0.001, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 0.999)
Stratum = Literal["special", "rest"]


class ObjectRecord(Schema):
    """One object of the store: its size and the blake3 digest of its bytes (hex, 256
    bit).
    """

    bytes: int = Field(ge=0)
    digest: Digest


class BlockRecord(Schema):
    """`blocks/00042.json`: the token block of one unit, and where in the corpus the
    next one starts.
    """

    unit: int = Field(ge=0)
    n_sequences: int = Field(ge=0)
    n_tokens: int = Field(ge=0, description="token positions that are not padding")
    tokens: ObjectRecord
    cursor: dict[str, Any] = Field(
        description="the corpus' own position where the next block starts"
    )
    last: bool = Field(description="the corpus or the budget ends with this block")
    skipped_documents: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _ends(self) -> BlockRecord:
        if self.cursor == {"end": True} and not self.last:
            raise ValueError(
                "the corpus ends with this block, but it is said not to be the last"
            )
        return self


class Claim(Schema):
    """`claims/00042.json`, only while harvesting: sequences per forward where the
    planned batch had no room.
    """

    batch: int = Field(gt=0)


class UnitRecord(Schema):
    """`units/00042.json`: its presence is the commit of the unit."""

    unit: int = Field(ge=0)
    n_sequences: int = Field(ge=0)
    n_rows: int = Field(ge=0, description="valid rows; they come first")
    objects: dict[str, ObjectRecord] = Field(description="by key relative to the store")
    batch: int | None = Field(
        default=None, description="sequences per forward where it had to be halved"
    )


class StratumNorms(Schema):
    """Norm statistics of one site over one stratum of the training rows.

    Of no rows (count 0) all figures are NaN, whatever is given: older stores say 0.
    """

    count: int = Field(description="finite rows")
    non_finite: int = Field(
        description="rows with a NaN or an infinity; they are in no other figure"
    )
    mean_norm: float
    mean_sq_norm: float
    max_norm: float
    quantiles: tuple[float, ...] = Field(
        json_schema_extra={"minItems": len(QUANTILES), "maxItems": len(QUANTILES)},
        description=(
            f"of the norm, at {', '.join(f'{q:g}' for q in QUANTILES)}, from fixed log"
            " bins"
        ),
    )
    outliers: int = Field(
        default=0, description="rows whose norm is above 10 times the median"
    )

    @model_validator(mode="before")
    @classmethod
    def _of_nothing(cls, values: Any) -> Any:
        if not isinstance(values, dict) or values.get("count") != 0:
            return values
        nan: dict[str, Any] = {
            one: math.nan
            for one in ("mean_norm", "mean_sq_norm", "max_norm")
            if one in values
        }
        if isinstance(values.get("quantiles"), list | tuple):
            # one object, so that records stay comparable
            nan["quantiles"] = (math.nan,) * len(values["quantiles"])
        return {**values, **nan}


class NormStats(Schema):
    """Norm statistics of one site: all training rows, and its two strata."""

    site: str
    d: int
    all: StratumNorms
    special: StratumNorms = Field(description="position 0 and special tokens")
    rest: StratumNorms


class Generation(Schema):
    """One plan and the units harvested under it. `extend` adds a generation.

    Each site of each unit is in exactly one generation.
    """

    plan: str = Field(description="key of the plan")
    units: str = Field(description="key prefix of the unit records")
    sites: tuple[Site, ...]
    first_unit: int = 0
    n_units: int
    n_sequences: int
    n_rows: int
    plan_digest: Digest
    units_digest: Digest = Field(
        description="blake3 over the unit records' bytes in unit order"
    )


class StoreManifest(Schema):
    """`manifest.json`: absent while harvesting; a store without it is unfinished."""

    format: Literal["actstore"] = "actstore"
    format_version: int = FORMAT_VERSION
    format_minor: Minor = 0
    content_id: Digest
    parent: Digest | None = None
    spec: HarvestSpec
    sites: tuple[Site, ...]
    layout: Layout
    model: ModelInfo
    numerics: Numerics
    generations: tuple[Generation, ...]
    n_units: int
    n_sequences: int
    n_rows: int = Field(description="valid rows per site, training and held out")
    n_train_rows: int
    n_bytes: int = Field(description="stored bytes of all units' objects")
    norms: tuple[NormStats, ...]
    files: dict[str, ObjectRecord] = Field(
        description="columns, merged statistics, tokenizer: everything else"
    )
    imported: Imported | None = Field(
        default=None,
        exclude_if=lambda value: value is None,
        description="of an imported store; else the key is absent",
    )

    _before = model_validator(mode="before")(as_before)

    @property
    def has_tokens(self) -> bool:
        """Whether the rows' token ids are known; an import may come without."""
        return self.imported is None or self.imported.tokens is not None

    @property
    def has_contexts(self) -> bool:
        """Whether a row's position in its sequence is known; an import may come
        without.
        """
        return self.imported is None or self.imported.contexts
