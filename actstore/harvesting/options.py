"""The options that say what to harvest, for `actstore harvest` and `actstore plan`. Importing this loads typer only."""

from __future__ import annotations

import functools
import inspect
import typing
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from schemas.harvest import HarvestSpec

Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, or auto: over all GPUs (needs accelerate).")]


def spec_options(
    model: Annotated[
        str, typer.Option(help="builtin:tiny, builtin:mini, a folder in Hugging Face layout, or a hub name.")
    ],
    corpus: Annotated[
        str,
        typer.Option(
            help="builtin:stdlib, text, JSONL or Parquet files (folders, globs, URLs), a saved data set, a hub name."
        ),
    ],
    sites: Annotated[
        list[str], typer.Option(help="TransformerLens hook names; `*` and {0..5} are patterns. May be given again.")
    ],
    tokens: Annotated[str, typer.Option(help="Tokens to run: 300k, 1M, 2.5B.")],
    context: Annotated[int, typer.Option(help="Tokens per sequence.")] = 128,
    batch: Annotated[int, typer.Option(help="Sequences per forward pass.")] = 32,
    dtype: Annotated[str, typer.Option(help="Stored values: bfloat16, float16, float32 or int8.")] = "bfloat16",
    codec: Annotated[str, typer.Option(help="lz4, zstd or raw.")] = "lz4",
    pack: Annotated[bool, typer.Option(help="Fill contexts from consecutive documents, or one document each.")] = True,
    prepend_bos: Annotated[
        bool | None, typer.Option(help="BOS before every context; default: as the model's tokenizer does.")
    ] = None,
    exclude_special_tokens: Annotated[bool, typer.Option(help="Keep no rows of BOS, EOS and the like.")] = False,
    skip_first: Annotated[int, typer.Option(help="Keep no rows of the first N positions of a context.")] = 0,
    exclude_tokens: Annotated[
        str | None, typer.Option(help="File with token ids, one per line, whose rows are not kept.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the rows' permutation.")] = 0,
    memory: Annotated[str, typer.Option(help="What units in flight may take: 4GiB, 500MB.")] = "4GiB",
    model_dtype: Annotated[str, typer.Option(help="The model's weights: float32, bfloat16 or float16.")] = "float32",
    autocast: Annotated[str | None, typer.Option(help="Run the forward under autocast: bfloat16 or float16.")] = None,
    compiled: Annotated[bool, typer.Option("--compile", help="Run the forward through torch.compile.")] = False,
    revision: Annotated[str | None, typer.Option(help="Of the model on the hub.")] = None,
    corpus_kind: Annotated[str, typer.Option(help="auto, builtin, text, jsonl, parquet, dataset or hub.")] = "auto",
    corpus_revision: Annotated[str | None, typer.Option(help="Of the data set on the hub.")] = None,
    corpus_config: Annotated[str | None, typer.Option(help="Configuration of the data set on the hub.")] = None,
    split: Annotated[str, typer.Option(help="Of a data set.")] = "train",
    text_column: Annotated[str, typer.Option(help="Column with the documents.")] = "text",
    token_column: Annotated[str | None, typer.Option(help="Column with token ids, if tokenised already.")] = None,
    unit_sequences: Annotated[int | None, typer.Option(help="Sequences per unit, instead of the planned size.")] = None,
    chunk_rows: Annotated[int | None, typer.Option(help="Rows per chunk, instead of the planned size.")] = None,
) -> HarvestSpec:
    """The spec that the options describe. Raises SpecError."""
    from actstore.harvesting.specs import parse_count, parse_size, read_tokens, resolve_spec

    given = {name: value for name, value in locals().items() if name in _PLAIN}
    data_set = {"kind": corpus_kind, "revision": corpus_revision, "config": corpus_config, "split": split}
    columns = {"text_column": text_column, "token_column": token_column}
    return resolve_spec(
        {
            **given,
            "model": {"name": model, "revision": revision, "dtype": model_dtype},
            "corpus": {"name": corpus, **data_set, **columns},
            "sites": tuple(sites),
            "tokens": parse_count(tokens),
            "memory": parse_size(memory),
            "exclude_tokens": read_tokens(exclude_tokens) if exclude_tokens else (),
            "compile": compiled,
        }
    )


_PLAIN = {
    *("context", "batch", "dtype", "codec", "pack", "prepend_bos", "exclude_special_tokens", "skip_first", "seed"),
    *("autocast", "unit_sequences", "chunk_rows"),
}


def with_spec(command: Callable[..., None]) -> Callable[..., None]:
    """A command whose first parameter, the spec, is given by `spec_options` on the command line."""
    mine = list(inspect.signature(command).parameters.values())[1:]
    theirs = list(inspect.signature(spec_options).parameters.values())
    hints = typing.get_type_hints(command, {**command.__globals__, **_NAMES}, include_extras=True)
    hints |= typing.get_type_hints(spec_options, _NAMES, include_extras=True)

    @functools.wraps(command)
    def run(**given: Any) -> None:
        options = {one.name: given.pop(one.name, one.default) for one in theirs}  # Python callers leave some out
        command(spec_options(**options), **given)

    every = [one.replace(kind=one.KEYWORD_ONLY, annotation=hints[one.name]) for one in (*theirs, *mine)]
    run.__signature__ = inspect.Signature(every)  # type: ignore[attr-defined]
    run.__annotations__ = {one.name: one.annotation for one in every}
    return run


_NAMES: dict[str, Any] = {**globals(), "HarvestSpec": Any}
