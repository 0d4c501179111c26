"""The record of a feature explorer's files."""

from __future__ import annotations

from pydantic import Field

from schemas.base import Schema

MOST_LATENTS = 1 << 26
MOST_LAYERS = 4096


class ExplorerRun(Schema):
    """Another run whose latents are compared with those that are shown."""

    name: str = Field(description="its name")
    n_latents: int = Field(ge=1, le=MOST_LATENTS, description="dictionary size")
    sites: tuple[str, ...] = Field(description="sites whose activations it sees")


class ExplorerRecord(Schema):
    """`explorer/meta.json` of a run: what its Parquet files hold; written last."""

    format_version: int = Field(default=1, ge=1, le=1, description="of these files")
    name: str = Field(description="the run's name")
    kind: str = Field(description="kind of SAE")
    model: str = Field(description="name of the language model")
    content_id: str = Field(description="content id of the store")
    weights: str = Field(
        default="", description="blake3 of the run's weights; empty: not known"
    )
    n_latents: int = Field(ge=1, le=MOST_LATENTS, description="dictionary size")
    layers: tuple[str, ...] = Field(
        min_length=1,
        max_length=MOST_LAYERS,
        description="what latents fire at: sites, or one for a crosscoder",
    )
    outputs: tuple[str, ...] = Field(
        min_length=1,
        max_length=MOST_LAYERS,
        description="sites that a latent's decoder has a direction of its own for",
    )
    split: str = Field(description="train or held_out: the rows that were looked at")
    rows: int = Field(ge=1, description="rows of each layer that were looked at")
    sketch_tokens: float = Field(
        ge=0, le=1, description="share of tokens that co-activation is counted on"
    )
    row_group: int = Field(ge=1, le=1 << 16, description="latents of a row group")
    before: int = Field(ge=0, le=1 << 12, description="tokens before a firing")
    after: int = Field(ge=0, le=1 << 12, description="tokens after it")
    no_logits: str | None = Field(
        description="why there are no output tokens; null: they are there"
    )
    beside: tuple[ExplorerRun, ...] = Field(
        default=(), max_length=4096, description="other runs, in their order"
    )
