"""The options that say what to harvest, for `actstore harvest` and `actstore plan`.

Importing this loads nothing heavy.
"""

from __future__ import annotations

import difflib
import functools
import inspect
import typing
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from actstore.console.cli_options import (
    choices,
    offered,
    one_of,
    option,
    panel_option,
    values_of,
)

if TYPE_CHECKING:
    from schemas.harvest import HarvestSpec

SCHEMA = "schemas.harvest:HarvestSpec"
# Each option's parameter, and the dotted path of the spec's field that it gives.
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
    "sites": "sites",
    "tokens": "tokens",
    "context": "context",
    "batch": "batch",
    "dtype": "dtype",
    "codec": "codec",
    "pack": "pack",
    "prepend_bos": "prepend_bos",
    "separator": "separator",
    "exclude_special_tokens": "exclude_special_tokens",
    "skip_first": "skip_first",
    "exclude_tokens": "exclude_tokens",
    "seed": "seed",
    "memory": "memory",
    "autocast": "autocast",
    "unit_sequences": "unit_sequences",
    "chunk_rows": "chunk_rows",
}
# Values of these fields that a command line does not offer. Kinds of corpus: what is
# done instead. `bos_if_any` is how harvests of format 1.0 were separated.
OTHER_KINDS = {
    "memory": (
        "documents in memory are given from Python, as `tokens=` of `actstore.harvest`"
    ),
    "imported": "`actstore import` makes a store of activations that exist already",
}
NOT_OFFERED = {"corpus_kind": tuple(OTHER_KINDS), "separator": ("bos_if_any",)}
# The help shows the options in these panels.
MODEL = "Model and sites"
CORPUS = "Corpus"
ROWS = "Rows that are kept"
STORED = "How it is stored"


def _values_of(parameter: str) -> Callable[[str], list[str]]:
    """Return tab completion with the values that an option's field takes."""
    return values_of(SCHEMA, FIELDS[parameter], NOT_OFFERED.get(parameter, ()))


Device = Annotated[
    str,
    typer.Option(
        metavar="DEVICE",
        help="cpu, cuda, cuda:1, or auto: over all GPUs (needs accelerate).",
        autocompletion=one_of("cpu", "cuda", "auto"),
    ),
]
Model = Annotated[
    str,
    panel_option(
        MODEL,
        metavar="NAME",
        help=(
            "builtin:tiny, builtin:mini, a folder in Hugging Face layout, or a hub"
            " name."
        ),
        autocompletion=one_of("builtin:tiny", "builtin:mini"),
    ),
]
Corpus = Annotated[
    str,
    panel_option(
        CORPUS,
        metavar="NAME",
        help=(
            "builtin:stdlib, text, JSONL or Parquet files (folders, globs, URLs), a"
            " saved data set, a hub name."
        ),
        autocompletion=one_of("builtin:stdlib"),
    ),
]
Sites = Annotated[
    list[str],
    panel_option(
        MODEL,
        metavar="SITES",
        help=(
            "TransformerLens hook names, or modules of the model (`actstore sites`"
            " lists both); `*` and {0..5} are patterns. May be given again."
        ),
    ),
]
Tokens = Annotated[str, panel_option(CORPUS, help="Tokens to run: 300k, 1M, 2.5B.")]
ModelDtype = Annotated[
    str | None,
    panel_option(
        MODEL, help="The model's weights.", autocompletion=_values_of("model_dtype")
    ),
]
Revision = Annotated[str | None, panel_option(MODEL, help="Of the model on the hub.")]
TrustRemoteCode = Annotated[
    bool,
    panel_option(
        MODEL, "--trust-remote-code", help="Run code that comes with the model."
    ),
]
Autocast = Annotated[
    str | None,
    panel_option(
        MODEL,
        help="Run the forward under autocast.",
        autocompletion=_values_of("autocast"),
    ),
]
Compiled = Annotated[
    bool,
    panel_option(MODEL, "--compile", help="Run the forward through torch.compile."),
]
Batch = Annotated[int | None, panel_option(MODEL, help="Sequences per forward pass.")]
Context = Annotated[int | None, panel_option(CORPUS, help="Tokens per sequence.")]
Pack = Annotated[
    bool | None,
    panel_option(
        CORPUS, help="Fill contexts from consecutive documents, or one document each."
    ),
]
PrependBos = Annotated[
    bool | None, panel_option(CORPUS, help="BOS before every context.")
]
Separator = Annotated[
    str | None,
    panel_option(
        CORPUS,
        metavar="TOKEN",
        help=(
            "Between documents: auto (BOS before each, where the model has one, else"
            " EOS or SEP after each), bos, eos, sep, none, or a token id."
        ),
        autocompletion=_values_of("separator"),
    ),
]
CorpusKind = Annotated[
    str | None,
    panel_option(CORPUS, help="What it is.", autocompletion=_values_of("corpus_kind")),
]
CorpusRevision = Annotated[
    str | None, panel_option(CORPUS, help="Of the data set on the hub.")
]
CorpusConfig = Annotated[
    str | None, panel_option(CORPUS, help="Configuration of the data set on the hub.")
]
Split = Annotated[
    str | None,
    panel_option(
        CORPUS,
        help=(
            "Of a data set, or of files by the names of files and folders (train,"
            " validation, test; all: every file)."
        ),
        show_default="train, where there are several",
    ),
]
TextColumn = Annotated[
    str | None,
    panel_option(
        CORPUS, help="Column with the documents; doc.text: field text of doc."
    ),
]
TokenColumn = Annotated[
    str | None,
    panel_option(CORPUS, help="Column with token ids, if tokenised already."),
]
ExcludeSpecialTokens = Annotated[
    bool,
    panel_option(
        ROWS, "--exclude-special-tokens", help="Keep no rows of BOS, EOS and the like."
    ),
]
SkipFirst = Annotated[
    int | None,
    panel_option(ROWS, help="Keep no rows of the first N positions of a context."),
]
ExcludeTokens = Annotated[
    str | None,
    panel_option(
        ROWS,
        metavar="FILE",
        help="File with token ids, one per line, whose rows are not kept.",
        show_default="none",
    ),
]
Dtype = Annotated[
    str | None,
    panel_option(STORED, help="Stored values.", autocompletion=_values_of("dtype")),
]
Codec = Annotated[
    str | None,
    panel_option(
        STORED, help="How chunks are compressed.", autocompletion=_values_of("codec")
    ),
]
Seed = Annotated[int | None, panel_option(STORED, help="Of the rows' permutation.")]
Memory = Annotated[
    str | None, panel_option(STORED, help="What units in flight may take: 4GiB, 500MB.")
]
UnitSequences = Annotated[int | None, panel_option(STORED, help="Sequences per unit.")]
ChunkRows = Annotated[int | None, panel_option(STORED, help="Rows per chunk.")]


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
    """Return the spec that the options describe. Raises SpecError."""
    # Before anything else is assigned: the parameters, by name.
    given = {name: value for name, value in locals().items() if name in FIELDS}
    from actstore.harvesting.harvest_spec import resolve_spec

    if corpus_kind is not None:
        _check_corpus_kind(corpus_kind)
    if separator is not None:
        given["separator"] = _separator(separator)
    if exclude_tokens:
        given["exclude_tokens"] = _token_ids(exclude_tokens)
    fields: dict[str, Any] = {"model": {}, "corpus": {}}
    for name, value in given.items():
        # The schema gives the fields that no option was given for.
        if value is None:
            continue
        # `model.dtype` is the field `dtype` of `model`.
        group, _, field = FIELDS[name].rpartition(".")
        group_fields = fields[group] if group else fields
        group_fields[field] = value
    return resolve_spec(fields, where="the options", options=option_names(FIELDS))


def option_names(fields: Mapping[str, str]) -> dict[str, str]:
    """Return how each field is written as an option.

    For example {"model.dtype": "--model-dtype"}.

    fields: An option's parameter, and the dotted path of its field.
    """
    return {path: option(parameter) for parameter, path in fields.items()}


def with_spec(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of a spec, for a decorator.

    The command's first parameter is the spec. What is returned has the parameters of
    `spec_options` instead, makes the spec of them, and passes the others on. So typer
    makes options of both.
    """
    spec_parameters = list(inspect.signature(spec_options).parameters.values())
    own_parameters = list(inspect.signature(command).parameters.values())[1:]
    # The annotations are strings (`from __future__ import annotations`), and some name
    # what is imported for type checkers only.
    own_names = {**command.__globals__, **_NAMES}
    hints = typing.get_type_hints(command, own_names, include_extras=True)
    hints |= typing.get_type_hints(spec_options, _NAMES, include_extras=True)

    @functools.wraps(command)
    def command_with_options(**given: Any) -> None:
        options = {}
        for parameter in spec_parameters:
            # Python callers leave some out.
            options[parameter.name] = given.pop(parameter.name, parameter.default)
        command(spec_options(**options), **given)

    parameters = [
        parameter.replace(kind=parameter.KEYWORD_ONLY, annotation=hints[parameter.name])
        for parameter in (*spec_parameters, *own_parameters)
    ]
    signature = inspect.Signature(parameters)
    command_with_options.__signature__ = signature  # type: ignore[attr-defined]
    command_with_options.__annotations__ = {
        parameter.name: parameter.annotation for parameter in parameters
    }
    return command_with_options


def _separator(text: str) -> int | str:
    """Return what separates documents: a token id, or a word. Raises SpecError."""
    from actstore.errors import SpecError

    if text.isdecimal():
        return int(text)
    path = FIELDS["separator"]
    if text not in choices(SCHEMA, path):
        words = ", ".join(offered(SCHEMA, path, NOT_OFFERED["separator"]))
        raise SpecError(f"--separator: wanted {words} or a token id, got {text!r}")
    return text


def _check_corpus_kind(kind: str) -> None:
    """Raise SpecError for a kind of corpus that no command line can give."""
    from actstore.errors import SpecError

    kinds = offered(SCHEMA, FIELDS["corpus_kind"], OTHER_KINDS)
    if kind in OTHER_KINDS:
        raise SpecError(
            f"--corpus-kind {kind}: {OTHER_KINDS[kind]}; a command line takes"
            f" {', '.join(kinds)}"
        )
    if kind not in kinds:
        near = difflib.get_close_matches(kind, kinds, 1, 0.5)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise SpecError(
            f"--corpus-kind: there is no {kind!r}{hint}; there are {', '.join(kinds)}"
        )


def _token_ids(path: str) -> tuple[int, ...]:
    """Read the token ids whose rows are not kept. Raises SpecError."""
    from actstore.console.token_file import read_tokens
    from actstore.errors import SpecError

    ids = read_tokens(path)
    if not ids:
        raise SpecError(
            f"--exclude-tokens {path}: no token id is in it; leave the option out"
        )
    return ids


_NAMES: dict[str, Any] = {**globals(), "HarvestSpec": Any}
