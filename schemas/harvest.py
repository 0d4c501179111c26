"""The spec of a harvest, and the plan that every worker of one harvest shares."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, Strict, field_validator, model_validator

from schemas.base import Count, Digest, Names, Schema, Size
from schemas.source import (
    CorpusSource,
    Imported,
    ModelDtype,
    ModelSource,
    Site,
    StorageDtype,
)

Codec = Literal["lz4", "zstd", "raw"]
# Strict, since `true` would otherwise be token 1.
Separator = (
    Literal["auto", "bos", "eos", "sep", "none", "bos_if_any"]
    | Annotated[int, Strict(), Field(ge=0)]
)
Minor = Annotated[
    int,
    Field(
        ge=0,
        exclude_if=lambda value: value == 0,
        description="minor version of the format; absent in a store of format 1.0",
    ),
]


class HarvestSpec(Schema):
    """One harvest, as the user asked for it.

    Two harvests of equal specs give the same bytes where their numerics are the same.
    """

    model: ModelSource = Field(description="the language model")
    corpus: CorpusSource = Field(description="the documents that it reads")
    sites: Names = Field(
        min_length=1,
        description=(
            "hook names or names of modules; `*` and `{0..5}` stand for several"
        ),
    )
    tokens: Count = Field(
        gt=0,
        description="tokens to run, rounded up to whole sequences",
    )
    context: int = Field(default=128, gt=0, description="tokens per sequence")
    pack: bool = Field(
        default=True,
        description=(
            "fill each sequence from consecutive documents; if not, one document each"
        ),
    )
    prepend_bos: bool | None = Field(
        default=None,
        description=(
            "begin each sequence with the BOS token; None: as the model's tokenizer"
            " does"
        ),
    )
    separator: Separator = Field(
        default="auto",
        # In a file without the key documents are separated as format 1.0 did it.
        exclude_if=lambda value: value == "bos_if_any",
        description=(
            "what stands between documents: BOS before each; EOS, SEP or a token id"
            " after each; none; bos_if_any: BOS if the tokenizer has one, else none (in"
            " a file the key is absent then); auto: BOS, else EOS, else SEP"
        ),
    )
    batch: int = Field(default=32, gt=0, description="sequences per forward pass")
    dtype: StorageDtype = Field(
        default="bfloat16", description="dtype that values are stored in"
    )
    codec: Codec = Field(default="lz4", description="compression of chunks")
    seed: int = Field(
        default=0,
        ge=0,
        description="seed of the order in which a unit's rows are stored",
    )
    memory: Size = Field(
        default=4 << 30,
        gt=0,
        description="bytes of memory for units on their way to the store",
    )
    # The next two decide which bytes lie together, and so the order of every stream.
    # They are planned once, and a resume takes them from the plan.
    unit_sequences: int | None = Field(
        default=None,
        gt=0,
        description="sequences per unit; None: planned, from `memory`",
    )
    chunk_rows: int | None = Field(
        default=None,
        gt=0,
        description="rows per chunk; None: planned, from the width of a row",
    )
    exclude_special_tokens: bool = Field(
        default=False,
        description="keep no rows of special tokens: BOS, EOS and the like",
    )
    skip_first: int = Field(
        default=0,
        ge=0,
        description="keep no rows of so many first tokens of a sequence",
    )
    exclude_tokens: tuple[int, ...] = Field(
        default=(), description="keep no rows of these token ids"
    )
    autocast: ModelDtype | None = Field(
        default=None,
        description="run the model under torch.autocast in this dtype; None: do not",
    )
    compile: bool = Field(
        default=False, description="compile the model with torch.compile"
    )

    @field_validator("model", "corpus", mode="before")
    @classmethod
    def _plain_name(cls, source: Any) -> Any:
        # A plain name stands for a source of that name: `"model": "gpt2"`.
        if isinstance(source, (str, os.PathLike)):
            return {"name": os.fspath(source)}
        return source


class Layout(Schema):
    """The sizes of units and chunks. Row id = unit * capacity + slot."""

    context: int = Field(gt=0, description="tokens per sequence")
    n_sequences: int = Field(
        gt=0,
        description=(
            "sequences as planned; a corpus that ends early leaves the last units"
            " absent"
        ),
    )
    unit_sequences: int = Field(gt=0, description="sequences per unit")
    capacity: int = Field(
        gt=0,
        description=(
            "slots for rows per unit: unit_sequences * context, rounded up to whole"
            " chunks"
        ),
    )
    chunk_rows: int = Field(gt=0, description="rows per chunk")
    n_units: int = Field(gt=0, description="units as planned")

    @property
    def n_slots(self) -> int:
        """Slots of all units together."""
        # Not the rows: padding and left-out tokens leave slots empty.
        return self.n_units * self.capacity

    @property
    def unit_chunks(self) -> int:
        """Chunks of a site in one unit."""
        return self.capacity // self.chunk_rows


class ModelInfo(Schema):
    """The language model that was loaded."""

    architecture: str = Field(description="name of its architecture")
    n_layers: int = Field(description="number of its layers")
    d_model: int = Field(description="width of its residual stream")
    vocabulary: int = Field(description="number of token ids")
    weights_digest: str = Field(
        description=("blake3 over the names and values of its parameters")
    )
    tokenizer_digest: Digest | None = Field(
        default=None, description="blake3 of the tokenizer; None: there is none"
    )
    bos_token: int | None = Field(
        default=None, description="id of the BOS token; None: there is none"
    )
    special_tokens: tuple[int, ...] = Field(
        default=(), description="ids of special tokens: BOS, EOS and the like"
    )
    # Folded weights would give other activations at the same hook names.
    processed: Literal[False] = Field(
        default=False,
        description="always false: weights are not folded as TransformerLens can do",
    )


class Numerics(Schema):
    """Settings that workers share, so that a unit done twice has the same bytes."""

    # Each of these changes how products are rounded and in which order they are added
    # up, and so the last bits of an activation.
    device: str = Field(description="kind of device, or name of the GPU")
    torch: str = Field(description="version of torch")
    dtype: str = Field(description="dtype that the model computes in")
    batch: int = Field(description="sequences per forward pass")
    threads: int = Field(description="threads of torch on a CPU")


class Subset(Schema):
    """The store that a part of it was copied from, and the units that came along.

    A unit that was left out is there without rows, so that every other one keeps its
    number: a row id and a sequence number mean the same in both stores.
    """

    parent: Digest = Field(description="content id of the store that it is a part of")
    units: tuple[tuple[int, int], ...] = Field(
        min_length=1,
        description=(
            "the units that were copied, as ranges in ascending order: first, and the"
            " one behind the last"
        ),
    )


def as_before(values: Any) -> Any:
    """Return a plan or manifest of format 1.0 as it was meant.

    In 1.0 `split: train` and `text_column: text` stood there without being asked for,
    and documents followed each other without a separator where the tokenizer has no
    BOS.
    """
    spec = values.get("spec") if isinstance(values, Mapping) else None
    if (
        not isinstance(spec, Mapping)
        or "separator" in spec
        or not isinstance(spec.get("corpus"), Mapping)
    ):
        return values
    corpus = {
        k: v
        for k, v in spec["corpus"].items()
        if (k, v) not in (("split", "train"), ("text_column", "text"))
    }
    return {**values, "spec": {**spec, "corpus": corpus, "separator": "bos_if_any"}}


class Plan(Schema):
    """`plan.json`: what a harvest is going to do.

    It is written before anything else, and only where there is none yet: a resume or a
    second worker joins the plan that it finds.

    `extend` adds `plan-1.json` and so on: a generation that holds more sites in the
    units there are, or more units.
    """

    format: Literal["actstore"] = "actstore"
    format_version: int = Field(description="major version of the format")
    format_minor: Minor = 0
    spec: HarvestSpec = Field(description="the harvest as it was asked for")
    sites: tuple[Site, ...] = Field(description="the sites, and their widths")
    layout: Layout = Field(description="sizes of units and chunks")
    model: ModelInfo = Field(description="the language model that was loaded")
    corpus_digest: str | None = Field(
        default=None, description="digest of the corpus' contents, if known"
    )
    numerics: Numerics = Field(
        description="settings that decide how values are rounded"
    )
    generation: int = Field(
        default=0, ge=0, description="0 for a harvest, then one more for each extend"
    )
    parent: Digest | None = Field(
        default=None, description="content id of the store that this generation extends"
    )
    first_unit: int = Field(
        default=0, ge=0, description="units before it belong to earlier generations"
    )
    # Keys that format 1.0 did not have are absent where they say nothing new: a plan of
    # then and the same plan of today have the same bytes, and the same digest.
    separator_token: int | None = Field(
        default=None,
        exclude_if=lambda value: value is None,
        description="token id that each document ends with; absent: none",
    )
    imported: Imported | None = Field(
        default=None,
        exclude_if=lambda value: value is None,
        description="origin of imported activations; absent in a harvest",
    )
    subset: Subset | None = Field(
        default=None,
        exclude_if=lambda value: value is None,
        description="the store that is copied in part; absent in a harvest",
    )

    _before = model_validator(mode="before")(as_before)

    @property
    def adds_sites(self) -> bool:
        """True if this generation adds sites to the units there are, not more units."""
        return self.generation > 0 and self.first_unit == 0
