"""Where activations come from: a model, a corpus, and sites of the model."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from schemas.base import Digest, Schema

ModelDtype = Literal["float32", "bfloat16", "float16"]
StorageDtype = Literal["bfloat16", "float16", "float32", "int8"]
CorpusKind = Literal[
    "auto",
    "builtin",
    "text",
    "jsonl",
    "parquet",
    "dataset",
    "hub",
    "memory",
    "imported",
]
ImportFormat = Literal[
    "npy",
    "pt",
    "safetensors",
    "hdf5",
    "parquet",
    "zarr",
    "saelens",
    "memory",
    "iterator",
]


class ModelSource(Schema):
    """A language model: `builtin:tiny`, a local folder in Hugging Face layout, or a hub
    name with a revision.
    """

    name: str = Field(min_length=1)
    revision: str | None = Field(
        default=None, description="on the hub; None: the newest"
    )
    dtype: ModelDtype = "float32"
    trust_remote_code: bool = Field(
        default=False,
        exclude_if=lambda value: value is False,
        description=(
            "run code that lies beside the model; where it is not trusted the key is"
            " absent"
        ),
    )


class CorpusSource(Schema):
    """Documents: `builtin:stdlib`, files or folders of text, JSONL or Parquet, a saved
    `datasets` folder, a hub name.

    `kind="auto"` decides from the name (and, for a folder, from what lies in it).
    """

    name: str = Field(min_length=1)
    kind: CorpusKind = "auto"
    revision: str | None = Field(
        default=None, description="on the hub; None: the newest"
    )
    split: str | None = Field(
        default=None,
        exclude_if=lambda value: value is None,
        description=(
            "of a data set, or of files by their names; None: train, where there are"
            " several"
        ),
    )
    config: str | None = Field(
        default=None, description="on the hub; None: the data set's only one"
    )
    text_column: str | None = Field(
        default=None,
        exclude_if=lambda value: value is None,
        description="`a.b`: field b of column a; None: text",
    )
    token_column: str | None = Field(
        default=None, description="token ids; None: documents are tokenised"
    )


class Site(Schema):
    """A TransformerLens hook name or the name of a module, and the width of its vectors
    (heads flattened).
    """

    name: str
    d: int = Field(gt=0)


class ImportedFile(Schema):
    """A file that was imported, or a folder that is one data set; an array in memory
    under the name of its site.
    """

    name: str = Field(description="relative to the folder that all of them lie in")
    bytes: int = Field(ge=0)
    digest: Digest = Field(
        description=(
            "blake3 of the bytes; of a folder: over its files' names and digests,"
            " sorted"
        )
    )


class ImportedArray(Schema):
    """What became a site: one array, or the parts of one in several files."""

    site: str
    format: ImportFormat
    key: str | None = Field(
        default=None,
        description="of the array in its file, where a file can hold several",
    )
    dtype: str
    files: tuple[str, ...] = ()


class Imported(Schema):
    """Where the activations of an imported store come from. A harvested store has none
    of this.
    """

    arrays: tuple[ImportedArray, ...]
    files: tuple[ImportedFile, ...] = ()
    tokens: str | None = Field(
        default=None,
        description="where the token ids come from; None: they are not known",
    )
    contexts: bool = Field(
        description=(
            "whether rows came in sequences; if not, each is a sequence of its own"
        )
    )
