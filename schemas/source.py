"""The origin of activations: a model, a corpus, and sites of the model."""

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
    """A language model: a built-in one, a local folder, or a name on the hub.

    A local folder has the layout of Hugging Face; a name on the hub may have a
    revision.
    """

    name: str = Field(
        min_length=1, description="`builtin:` name, path of a folder, or hub name"
    )
    revision: str | None = Field(
        default=None,
        description="branch, tag or commit on the hub; None: the newest",
    )
    dtype: ModelDtype = Field(
        default="float32", description="dtype that the model computes in"
    )
    # Never on by default: such code may do anything that its user may do.
    trust_remote_code: bool = Field(
        default=False,
        exclude_if=lambda value: value is False,
        description=(
            "run Python code that comes with the model; the key is absent where that"
            " is not allowed"
        ),
    )


class CorpusSource(Schema):
    """Documents that a language model reads.

    They come from `builtin:stdlib`, from files or folders of text, JSONL or Parquet,
    from a saved `datasets` folder, or from a data set on the hub.

    `kind="auto"` decides from the name (and, for a folder, from what lies in it).
    """

    name: str = Field(
        min_length=1, description="`builtin:` name, path or glob, or hub name"
    )
    kind: CorpusKind = Field(
        default="auto",
        description="meaning of the name; auto: decided from it",
    )
    revision: str | None = Field(
        default=None,
        description="branch, tag or commit on the hub; None: the newest",
    )
    split: str | None = Field(
        default=None,
        exclude_if=lambda value: value is None,
        description=(
            "split of a data set, or of files by their names; None: train, where there"
            " are several"
        ),
    )
    config: str | None = Field(
        default=None,
        description="configuration of a data set on the hub; None: its only one",
    )
    text_column: str | None = Field(
        default=None,
        exclude_if=lambda value: value is None,
        description="column of the text; `a.b` is field b of column a; None: text",
    )
    token_column: str | None = Field(
        default=None,
        description="column of token ids; None: documents are tokenised",
    )


class Site(Schema):
    """A place in the model by name, and the width of the vectors there.

    The name is TransformerLens' hook name, or that of a module. Where a vector has
    heads, they are flattened.
    """

    name: str = Field(description="hook name, or name of a module")
    d: int = Field(gt=0, description="width of an activation")


class ImportedFile(Schema):
    """A file that was imported, or a folder that is one data set.

    An array in memory is recorded under the name of its site.
    """

    name: str = Field(
        description="path relative to the folder that all imported files lie in"
    )
    bytes: int = Field(ge=0, description="size in bytes")
    digest: Digest = Field(
        description=(
            "blake3 of the file's bytes; for a folder: of its files' names and digests,"
            " in sorted order"
        )
    )


class ImportedArray(Schema):
    """The array that became a site: of one file, or the same one of several files."""

    site: str = Field(description="name of the site")
    format: ImportFormat = Field(description="format of the files")
    key: str | None = Field(
        default=None,
        description="name of the array in its file, where a file can hold several",
    )
    dtype: str = Field(description="dtype of the array before it was stored")
    files: tuple[str, ...] = Field(default=(), description="names of the files")


class Imported(Schema):
    """The origin of the activations in an imported store.

    A harvested store has none of this.
    """

    arrays: tuple[ImportedArray, ...] = Field(description="one for each site")
    # Not in each array: several arrays may lie in one file, which is digested once.
    files: tuple[ImportedFile, ...] = Field(
        default=(), description="every file that was read"
    )
    tokens: str | None = Field(
        default=None,
        description="origin of the token ids; None: they are not known",
    )
    contexts: bool = Field(
        description=(
            "whether rows came in sequences; if not, each row is a sequence of its own"
        )
    )
