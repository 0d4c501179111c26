"""The options that say what to harvest, for `actstore harvest` and `actstore plan`.
Importing this loads typer only.
"""

from __future__ import annotations

import functools
import inspect
import typing
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from actstore.console.cli_options import one_of, option, values_of

if TYPE_CHECKING:
    from schemas.harvest import HarvestSpec

SCHEMA = "schemas.harvest:HarvestSpec"
FIELDS = {
    "model": "model.name",
    "revision": "model.revision",
    "model_dtype": "model.dtype",
    "trust_remote_code": "model.trust_remote_code",
    "corpus": "corpus.name",
    "corpus_kind": "corpus.kind",
    "corpus_revision": "corpus.revision",
    "corpus_config": "corpus.config",
    "split": "corpus.split",
    "text_column": "corpus.text_column",
    "token_column": "corpus.token_column",
    "compiled": "compile",
    **{
        name: name
        for name in (
            *(
                "sites",
                "tokens",
                "context",
                "batch",
                "dtype",
                "codec",
                "pack",
                "prepend_bos",
                "separator",
            ),
            "exclude_special_tokens",
            *(
                "skip_first",
                "exclude_tokens",
                "seed",
                "memory",
                "autocast",
                "unit_sequences",
                "chunk_rows",
            ),
        )
    },
}
MODEL, CORPUS, ROWS, STORED = (
    "Model and sites",
    "Corpus",
    "Rows that are kept",
    "How it is stored",
)

Device = Annotated[
    str,
    typer.Option(
        metavar="DEVICE",
        help="cpu, cuda, cuda:1, or auto: over all GPUs (needs accelerate).",
        autocompletion=one_of("cpu", "cuda", "auto"),
    ),
]


def _of(name: str) -> Callable[[str], list[str]]:
    return values_of(SCHEMA, FIELDS[name])


Model = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help=(
            "builtin:tiny, builtin:mini, a folder in Hugging Face layout, or a hub"
            " name."
        ),
        rich_help_panel=MODEL,
        autocompletion=one_of("builtin:tiny", "builtin:mini"),
    ),
]
Corpus = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help=(
            "builtin:stdlib, text, JSONL or Parquet files (folders, globs, URLs), a"
            " saved data set, a hub name."
        ),
        rich_help_panel=CORPUS,
        autocompletion=one_of("builtin:stdlib"),
    ),
]
Sites = Annotated[
    list[str],
    typer.Option(
        metavar="SITES",
        help=(
            "TransformerLens hook names, or modules of the model (`actstore sites`"
            " lists both); `*` and {0..5} are patterns. May be given again."
        ),
        rich_help_panel=MODEL,
    ),
]
Tokens = Annotated[
    str, typer.Option(help="Tokens to run: 300k, 1M, 2.5B.", rich_help_panel=CORPUS)
]
ModelDtype = Annotated[
    str | None,
    typer.Option(
        help="The model's weights.",
        rich_help_panel=MODEL,
        autocompletion=_of("model_dtype"),
    ),
]
Revision = Annotated[
    str | None, typer.Option(help="Of the model on the hub.", rich_help_panel=MODEL)
]
TrustRemoteCode = Annotated[
    bool,
    typer.Option(
        "--trust-remote-code",
        help="Run code that comes with the model.",
        rich_help_panel=MODEL,
    ),
]
Autocast = Annotated[
    str | None,
    typer.Option(
        help="Run the forward under autocast.",
        rich_help_panel=MODEL,
        autocompletion=_of("autocast"),
    ),
]
Compiled = Annotated[
    bool,
    typer.Option(
        "--compile",
        help="Run the forward through torch.compile.",
        rich_help_panel=MODEL,
    ),
]
Batch = Annotated[
    int | None, typer.Option(help="Sequences per forward pass.", rich_help_panel=MODEL)
]
Context = Annotated[
    int | None, typer.Option(help="Tokens per sequence.", rich_help_panel=CORPUS)
]
Pack = Annotated[
    bool | None,
    typer.Option(
        help="Fill contexts from consecutive documents, or one document each.",
        rich_help_panel=CORPUS,
    ),
]
PrependBos = Annotated[
    bool | None, typer.Option(help="BOS before every context.", rich_help_panel=CORPUS)
]
Separator = Annotated[
    str | None,
    typer.Option(
        metavar="TOKEN",
        help=(
            "Between documents: auto (BOS before each, where the model has one, else"
            " EOS or SEP after each), bos, eos, sep, none, or a token id."
        ),
        rich_help_panel=CORPUS,
        autocompletion=_of("separator"),
    ),
]
CorpusKind = Annotated[
    str | None,
    typer.Option(
        help="What it is.", rich_help_panel=CORPUS, autocompletion=_of("corpus_kind")
    ),
]
CorpusRevision = Annotated[
    str | None, typer.Option(help="Of the data set on the hub.", rich_help_panel=CORPUS)
]
CorpusConfig = Annotated[
    str | None,
    typer.Option(
        help="Configuration of the data set on the hub.", rich_help_panel=CORPUS
    ),
]
Split = Annotated[
    str | None,
    typer.Option(
        help=(
            "Of a data set, or of files by the names of files and folders (train,"
            " validation, test; all: every file)."
        ),
        show_default="train, where there are several",
        rich_help_panel=CORPUS,
    ),
]
TextColumn = Annotated[
    str | None,
    typer.Option(
        help="Column with the documents; doc.text: field text of doc.",
        rich_help_panel=CORPUS,
    ),
]
TokenColumn = Annotated[
    str | None,
    typer.Option(
        help="Column with token ids, if tokenised already.", rich_help_panel=CORPUS
    ),
]
ExcludeSpecialTokens = Annotated[
    bool,
    typer.Option(
        "--exclude-special-tokens",
        help="Keep no rows of BOS, EOS and the like.",
        rich_help_panel=ROWS,
    ),
]
SkipFirst = Annotated[
    int | None,
    typer.Option(
        help="Keep no rows of the first N positions of a context.", rich_help_panel=ROWS
    ),
]
ExcludeTokens = Annotated[
    str | None,
    typer.Option(
        metavar="FILE",
        help="File with token ids, one per line, whose rows are not kept.",
        show_default="none",
        rich_help_panel=ROWS,
    ),
]
Dtype = Annotated[
    str | None,
    typer.Option(
        help="Stored values.", rich_help_panel=STORED, autocompletion=_of("dtype")
    ),
]
Codec = Annotated[
    str | None,
    typer.Option(
        help="How chunks are compressed.",
        rich_help_panel=STORED,
        autocompletion=_of("codec"),
    ),
]
Seed = Annotated[
    int | None, typer.Option(help="Of the rows' permutation.", rich_help_panel=STORED)
]
Memory = Annotated[
    str | None,
    typer.Option(
        help="What units in flight may take: 4GiB, 500MB.", rich_help_panel=STORED
    ),
]
UnitSequences = Annotated[
    int | None, typer.Option(help="Sequences per unit.", rich_help_panel=STORED)
]
ChunkRows = Annotated[
    int | None, typer.Option(help="Rows per chunk.", rich_help_panel=STORED)
]


def spec_options(
    model: Model,
    corpus: Corpus,
    sites: Sites,
    tokens: Tokens,
    model_dtype: ModelDtype = None,
    revision: Revision = None,
    trust_remote_code: TrustRemoteCode = False,
    autocast: Autocast = None,
    compiled: Compiled = False,
    batch: Batch = None,
    context: Context = None,
    pack: Pack = None,
    prepend_bos: PrependBos = None,
    separator: Separator = None,
    corpus_kind: CorpusKind = None,
    corpus_revision: CorpusRevision = None,
    corpus_config: CorpusConfig = None,
    split: Split = None,
    text_column: TextColumn = None,
    token_column: TokenColumn = None,
    exclude_special_tokens: ExcludeSpecialTokens = False,
    skip_first: SkipFirst = None,
    exclude_tokens: ExcludeTokens = None,
    dtype: Dtype = None,
    codec: Codec = None,
    seed: Seed = None,
    memory: Memory = None,
    unit_sequences: UnitSequences = None,
    chunk_rows: ChunkRows = None,
) -> HarvestSpec:
    """The spec that the options describe. Raises SpecError."""
    given = {name: value for name, value in locals().items() if name in FIELDS}
    from actstore.console.token_file import read_tokens
    from actstore.harvesting.harvest_spec import resolve_spec

    if separator and separator.isdecimal():
        given["separator"] = int(separator)
    if exclude_tokens:
        given["exclude_tokens"] = read_tokens(exclude_tokens)
        if not given["exclude_tokens"]:
            from actstore.errors import SpecError

            raise SpecError(
                f"--exclude-tokens {exclude_tokens}: no token id is in it; leave the"
                " option out"
            )
    values: dict[str, Any] = {"model": {}, "corpus": {}}
    for name, value in given.items():
        if value is not None:
            above, _, key = FIELDS[name].rpartition(".")
            (values[above] if above else values)[key] = value
    names = {path: option(name) for name, path in FIELDS.items()}
    return resolve_spec(values, where="the options", options=names)


def with_spec(command: Callable[..., None]) -> Callable[..., None]:
    """A command whose first parameter, the spec, is given by `spec_options` on the
    command line.
    """
    mine = list(inspect.signature(command).parameters.values())[1:]
    theirs = list(inspect.signature(spec_options).parameters.values())
    hints = typing.get_type_hints(
        command, {**command.__globals__, **_NAMES}, include_extras=True
    )
    hints |= typing.get_type_hints(spec_options, _NAMES, include_extras=True)

    @functools.wraps(command)
    def run(**given: Any) -> None:
        # Python callers leave some out
        options = {one.name: given.pop(one.name, one.default) for one in theirs}
        command(spec_options(**options), **given)

    every = [
        one.replace(kind=one.KEYWORD_ONLY, annotation=hints[one.name])
        for one in (*theirs, *mine)
    ]
    run.__signature__ = inspect.Signature(every)  # type: ignore[attr-defined]
    run.__annotations__ = {one.name: one.annotation for one in every}
    return run


_NAMES: dict[str, Any] = {**globals(), "HarvestSpec": Any}
