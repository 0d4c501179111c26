"""What to harvest, and the plan that every worker of one harvest shares."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, Strict, model_validator

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
Separator = (
    Literal["auto", "bos", "eos", "sep", "none", "bos_if_any"]
    | Annotated[int, Strict(), Field(ge=0)]
)
Minor = Annotated[
    int,
    Field(
        ge=0,
        exclude_if=lambda value: value == 0,
        description="of the format; a store of 1.0 has no such key",
    ),
]


class HarvestSpec(Schema):
    """One harvest, as the user asked for it. Two harvests of equal specs give the same
    bytes on the same numerics.
    """

    model: ModelSource
    corpus: CorpusSource
    sites: Names = Field(
        min_length=1, description="hook names or modules; `*` and `{0..5}` are patterns"
    )
    tokens: Count = Field(
        gt=0,
        description="token positions to run (sequences = tokens / context, rounded up)",
    )
    context: int = Field(default=128, gt=0, description="tokens per sequence")
    pack: bool = Field(
        default=True,
        description="fill contexts from consecutive documents, else one document each",
    )
    prepend_bos: bool | None = Field(
        default=None, description="None: as the model's tokenizer does"
    )
    separator: Separator = Field(
        default="auto",
        exclude_if=lambda value: value == "bos_if_any",
        description=(
            "between documents: BOS before each; EOS, SEP or a token id after each;"
            " none; bos_if_any: BOS if the tokenizer has one, else none (in a file the"
            " key is absent then); auto: BOS, else EOS, else SEP"
        ),
    )
    batch: int = Field(default=32, gt=0, description="sequences per forward pass")
    dtype: StorageDtype = "bfloat16"
    codec: Codec = "lz4"
    seed: int = Field(default=0, ge=0)
    memory: Size = Field(
        default=4 << 30, gt=0, description="bytes that units in flight may take"
    )
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
        default=False, description="keep no rows of BOS, EOS and the like"
    )
    skip_first: int = Field(
        default=0, ge=0, description="keep no rows of the first positions of a context"
    )
    exclude_tokens: tuple[int, ...] = Field(
        default=(), description="keep no rows of these token ids"
    )
    autocast: ModelDtype | None = Field(
        default=None,
        description="run the forward under torch.autocast; None: no autocast",
    )
    compile: bool = Field(
        default=False, description="run the forward through torch.compile"
    )


class Layout(Schema):
    """How rows fall into units, chunks and objects. Row id = unit * capacity + slot."""

    context: int = Field(gt=0)
    n_sequences: int = Field(
        gt=0,
        description="planned; a corpus that ends early leaves the last units absent",
    )
    unit_sequences: int = Field(gt=0, description="sequences per unit (S)")
    capacity: int = Field(
        gt=0, description="row slots per unit: S * context rounded up to whole chunks"
    )
    chunk_rows: int = Field(gt=0)
    n_units: int = Field(gt=0)

    @property
    def n_slots(self) -> int:
        return self.n_units * self.capacity

    @property
    def unit_chunks(self) -> int:
        return self.capacity // self.chunk_rows


class ModelInfo(Schema):
    """What was actually loaded."""

    architecture: str
    n_layers: int
    d_model: int
    vocabulary: int
    weights_digest: str = Field(
        description="blake3 over parameter names and values, or of the module given"
    )
    tokenizer_digest: Digest | None = None
    bos_token: int | None = None
    special_tokens: tuple[int, ...] = ()
    processed: Literal[False] = Field(
        default=False, description="TransformerLens' unprocessed activations"
    )


class Numerics(Schema):
    """What must agree between workers for a unit done twice to be the same bytes."""

    device: str
    torch: str
    dtype: str
    batch: int
    threads: int


def as_before(values: Any) -> Any:
    """A plan or manifest of format 1.0, as it was meant: `train` and `text` stood there
    without being asked for, and documents of a tokenizer without BOS followed each
    other.
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
    """`plan.json`, written first with a conditional create: what a resume or a second
    worker joins.

    `extend` adds `plan-1.json` and so on: a generation that holds more sites on the
    units there are, or more units.
    """

    format: Literal["actstore"] = "actstore"
    format_version: int
    format_minor: Minor = 0
    spec: HarvestSpec
    sites: tuple[Site, ...]
    layout: Layout
    model: ModelInfo
    corpus_digest: str | None = Field(
        default=None, description="what identifies the corpus' contents, if known"
    )
    numerics: Numerics
    generation: int = Field(default=0, ge=0)
    parent: Digest | None = Field(
        default=None, description="content id of the store that this generation extends"
    )
    first_unit: int = Field(
        default=0, ge=0, description="units before it belong to earlier generations"
    )
    separator_token: int | None = Field(
        default=None,
        exclude_if=lambda value: value is None,
        description="what each document ends with; absent: nothing",
    )
    imported: Imported | None = Field(
        default=None,
        exclude_if=lambda value: value is None,
        description="of an import; else the key is absent",
    )

    _before = model_validator(mode="before")(as_before)

    @property
    def adds_sites(self) -> bool:
        """Whether this generation holds more sites of the units there are (else: more
        units).
        """
        return self.generation > 0 and self.first_unit == 0
