"""Where activations come from: a model, a corpus, and sites of the model."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from schemas.base import Schema

ModelDtype = Literal["float32", "bfloat16", "float16"]
StorageDtype = Literal["bfloat16", "float16", "float32", "int8"]
CorpusKind = Literal["auto", "builtin", "text", "jsonl", "parquet", "dataset", "hub", "memory"]


class ModelSource(Schema):
    """A language model: `builtin:tiny`, a local folder in Hugging Face layout, or a hub name with a revision."""

    name: str = Field(min_length=1)
    revision: str | None = Field(default=None, description="on the hub; None: the newest")
    dtype: ModelDtype = "float32"


class CorpusSource(Schema):
    """Documents: `builtin:stdlib`, files or folders of text, JSONL or Parquet, a saved `datasets` folder, a hub name.

    `kind="auto"` decides from the name (and, for a folder, from what lies in it).
    """

    name: str = Field(min_length=1)
    kind: CorpusKind = "auto"
    revision: str | None = Field(default=None, description="on the hub; None: the newest")
    split: str = "train"
    config: str | None = Field(default=None, description="on the hub; None: the data set's only one")
    text_column: str = "text"
    token_column: str | None = Field(default=None, description="token ids; None: documents are tokenised")


class Site(Schema):
    """A TransformerLens hook name and the width of its vectors (heads flattened)."""

    name: str
    d: int = Field(gt=0)
