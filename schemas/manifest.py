"""The records of a store: blocks, units, norm statistics, and the manifest.

`docs/FORMAT.md` is the normative text.
"""

from __future__ import annotations

import math
from typing import Any, Literal

from pydantic import Field, model_validator

from schemas.base import Digest, Schema
from schemas.harvest import (
    HarvestSpec,
    Layout,
    Minor,
    ModelInfo,
    Numerics,
    Subset,
    as_before,
)
from schemas.source import Imported, Site

FORMAT_VERSION = 1
FORMAT_MINOR = 2
# Of so many units, one is held out: 5 % of the rows suffice for evaluation, and a store
# of 20 units has some. Stores rely on it, so it never changes.
HELD_OUT_EVERY = 20
# Dense at both ends, which is where outliers show.
QUANTILES = (0.001, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 0.999)
Stratum = Literal["special", "rest"]


class ObjectRecord(Schema):
    """One object of the store: its size and the blake3 digest of its bytes."""

    bytes: int = Field(ge=0, description="size in bytes")
    digest: Digest = Field(description="blake3 of its bytes")


class BlockRecord(Schema):
    """`blocks/00042.json`: one unit's token block, and where the next block starts."""

    unit: int = Field(ge=0, description="number of the unit")
    n_sequences: int = Field(ge=0, description="sequences of the block")
    n_tokens: int = Field(ge=0, description="tokens that are not padding")
    tokens: ObjectRecord = Field(description="the object that holds the tokens")
    # Each kind of corpus counts in its own way: by file and byte, by row, by sequence.
    cursor: dict[str, Any] = Field(
        description="place in the corpus where the next block starts"
    )
    last: bool = Field(
        description="true: the corpus, or the part asked for, ends with this block"
    )
    skipped_documents: int = Field(
        default=0, ge=0, description="documents that could not be used"
    )

    # The end of the corpus is told by `last` alone: without it the store could never be
    # finished.
    @model_validator(mode="after")
    def _ends(self) -> BlockRecord:
        if self.cursor == {"end": True} and not self.last:
            raise ValueError(
                "the corpus ends with this block, but it is said not to be the last"
            )
        return self


class Claim(Schema):
    """`claims/00042.json`: a smaller batch for a unit, where memory was too small.

    It is there only while harvesting. Whoever does the unit again takes the batch that
    it says, so that the unit's bytes are the same.
    """

    batch: int = Field(gt=0, description="sequences per forward pass")


class CopyRecord(Schema):
    """`copy.json`: there only while a store is being copied to a place.

    It says of which store, so that no two are mixed: what lies there by the size that
    this store recorded was written by a copy of it, which had checked the bytes.
    """

    format: Literal["actstore"] = "actstore"
    content_id: Digest = Field(description="content id of the store that is copied")
    sites: tuple[str, ...] | None = Field(
        default=None, description="the sites that are copied; null: all"
    )
    units: tuple[tuple[int, int], ...] | None = Field(
        default=None,
        description="the units that are copied, as ranges: first, end; null: all",
    )


class UnitRecord(Schema):
    """`units/00042.json`: its presence is the commit of the unit."""

    unit: int = Field(ge=0, description="number of the unit")
    n_sequences: int = Field(ge=0, description="sequences of the unit")
    n_rows: int = Field(
        ge=0, description="rows of each site; they fill the unit's first slots"
    )
    objects: dict[str, ObjectRecord] = Field(
        description="the unit's objects, by key relative to the store"
    )
    batch: int | None = Field(
        default=None,
        description=(
            "sequences per forward pass where the planned ones did not fit into"
            " memory; null: as planned"
        ),
    )


class StratumNorms(Schema):
    """Norm statistics of one site over some of the training rows.

    Without rows (count 0) all figures are NaN, whatever is given: older stores say 0.
    """

    count: int = Field(description="rows with finite values only")
    non_finite: int = Field(
        description="rows with a NaN or an infinity; they are in no other figure"
    )
    mean_norm: float = Field(description="mean L2 norm")
    mean_sq_norm: float = Field(description="mean squared L2 norm")
    max_norm: float = Field(description="largest L2 norm")
    quantiles: tuple[float, ...] = Field(
        json_schema_extra={"minItems": len(QUANTILES), "maxItems": len(QUANTILES)},
        description=(
            "quantiles of the L2 norm, at"
            f" {', '.join(f'{quantile:g}' for quantile in QUANTILES)}, read from a"
            " histogram with logarithmic bins"
        ),
    )
    # A default, since manifests before it have none.
    outliers: int = Field(
        default=0, description="rows whose norm is above 10 times the median"
    )

    @model_validator(mode="before")
    @classmethod
    def _nan_without_rows(cls, values: Any) -> Any:
        if not isinstance(values, dict) or values.get("count") != 0:
            return values
        replaced = dict(values)
        for name in ("mean_norm", "mean_sq_norm", "max_norm"):
            if name in values:
                replaced[name] = math.nan
        quantiles = values.get("quantiles")
        if isinstance(quantiles, list | tuple):
            # NaN is not equal to NaN, but an object is equal to itself in a tuple: with
            # the one object that math.nan is, two such records are equal.
            replaced["quantiles"] = (math.nan,) * len(quantiles)
        return replaced


class NormStats(Schema):
    """Norm statistics of one site: of all training rows, and of two parts of them."""

    site: str = Field(description="name of the site")
    d: int = Field(description="width of its activations")
    all: StratumNorms = Field(description="all training rows")
    special: StratumNorms = Field(
        description="rows at the first position of a sequence, or of special tokens"
    )
    rest: StratumNorms = Field(description="all other rows")


class Generation(Schema):
    """One plan and the units harvested under it. `extend` adds a generation.

    Each site of each unit is in exactly one generation.
    """

    plan: str = Field(description="key of the plan")
    units: str = Field(description="beginning of the keys of its unit records")
    sites: tuple[Site, ...] = Field(description="sites that it holds")
    first_unit: int = Field(default=0, description="number of its first unit")
    n_units: int = Field(description="units that it holds")
    n_sequences: int = Field(description="sequences of these units")
    n_rows: int = Field(description="rows of each site in these units")
    plan_digest: Digest = Field(description="blake3 of the plan's bytes")
    units_digest: Digest = Field(
        description="blake3 over the unit records' bytes in unit order"
    )


class StoreManifest(Schema):
    """`manifest.json`: absent while harvesting; a store without it is unfinished."""

    format: Literal["actstore"] = "actstore"
    # A reader refuses a newer one of either: it would have keys that are unknown here.
    format_version: int = Field(
        default=FORMAT_VERSION, description="major version of the format"
    )
    format_minor: Minor = 0
    content_id: Digest = Field(description="digest of all that the store holds")
    parent: Digest | None = Field(
        default=None, description="content id of the store before the last extend"
    )
    spec: HarvestSpec = Field(description="the harvest as it was asked for")
    sites: tuple[Site, ...] = Field(description="all sites, and their widths")
    layout: Layout = Field(description="sizes of units and chunks")
    model: ModelInfo = Field(description="the language model that was loaded")
    numerics: Numerics = Field(
        description="settings that decide how values are rounded"
    )
    generations: tuple[Generation, ...] = Field(
        description="the harvest, then each extend"
    )
    n_units: int = Field(description="units of the store")
    n_sequences: int = Field(description="sequences of all units")
    n_rows: int = Field(description="rows of each site, training and held out")
    n_train_rows: int = Field(description="rows of each site that are not held out")
    n_bytes: int = Field(description="bytes that all units' objects take")
    norms: tuple[NormStats, ...] = Field(description="norm statistics of each site")
    files: dict[str, ObjectRecord] = Field(
        description="every other object, by key: columns, statistics, tokenizer, card"
    )
    imported: Imported | None = Field(
        default=None,
        exclude_if=lambda value: value is None,
        description="origin of imported activations; absent in a harvested store",
    )
    subset: Subset | None = Field(
        default=None,
        exclude_if=lambda value: value is None,
        description="the store that this is a part of; absent in a whole store",
    )

    _before = model_validator(mode="before")(as_before)

    @property
    def has_tokens(self) -> bool:
        """True if the rows' token ids are known; an import may come without them."""
        return self.imported is None or self.imported.tokens is not None

    @property
    def has_contexts(self) -> bool:
        """True if rows' positions in sequences are known; an import may lack them."""
        return self.imported is None or self.imported.contexts
