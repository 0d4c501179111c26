"""Activations that exist already become a store: files, arrays in memory, or an
iterator of arrays.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

from actstore.errors import ExistsError, SpecError
from actstore.format import keys
from actstore.format.storage import Storage
from actstore.harvesting.store_writer import StoreWriter, check_unfinished
from actstore.harvesting.worker import Progress, Report, tell_non_finite
from actstore.importing.array_checks import are_paths, ids_in_memory
from actstore.importing.import_plan import make_plan
from actstore.importing.import_worker import Run, note
from actstore.importing.sequence_feed import Feed, IteratorFeed, TableFeed
from actstore.importing.sources import (
    Choice,
    split_named,
    table_of_arrays,
    table_of_files,
)
from schemas.harvest import Codec, Plan
from schemas.source import StorageDtype

if TYPE_CHECKING:
    from actstore.store.store import Store


class Stored(TypedDict, total=False):
    """How values are stored: the fields of a HarvestSpec that an import has too."""

    dtype: StorageDtype
    codec: Codec
    seed: int
    memory: int
    unit_sequences: int | None
    chunk_rows: int | None


def import_activations(
    source: Any,
    out: str,
    *,
    site: str | None = None,
    keys: Sequence[str] = (),
    tokens: Any = None,
    token_key: str | None = None,
    format: str = "auto",  # noqa: A002 (the option's name)
    context: int | None = None,
    rows: int | None = None,
    model: str = "unknown",
    options: Mapping[str, Any] | None = None,
    progress: Report | None = None,
    **stored: Unpack[Stored],
) -> Store:
    """Make a store at `out` (any fsspec URL; `options` go to its file system) of
    activations that exist already.

    source: a path or several (npy, pt, safetensors, hdf5, parquet, zarr, a SAELens
        cache; see `actstore import`), a dict {site: paths} or {site: array}, an array
        of one site, or an iterator of arrays, of dicts {site: array} or of (tokens,
        {site: array}). Arrays, numpy or torch, are [n, d] or [n_sequences, context, d],
        the same rows at every site; they are read once, in order, in bounded memory.
    site: the name of the one site, where arrays or files have none. keys: which arrays
    of the files to take. tokens: token ids of the same rows, [n_sequences, context] or
    [n], an array or a path; -1: padding, a row that is
        not kept, wherever it stands: the others keep their positions. token_key: their
        name in their file, or beside the activations.
    context: tokens per sequence, where rows [n, d] are whole sequences one after the
        other. Without it (and without arrays that show it) each row is a sequence of
        its own, and its position is not known.
    rows: take at most so many, rounded up to a sequence. model: what the activations
    are of; nothing is loaded. stored: how values are stored, as in a harvest.

    An unfinished import of the same files or arrays goes on where it stopped; that of
    an iterator cannot.

    Raises:
        SourceError: a file or array that cannot be imported; SpecError: an option that
        cannot be used.
        NumericsError: values too large for the storage dtype, or a site of which no row
            is finite, or none of the first few hundred. ExistsError, StorageError: as a
            harvest does.
    """
    report = progress or (lambda _: None)
    storage = Storage(out, dict(options or {}))
    check_unfinished(storage)
    _check(stored, context=context, rows=rows)
    report(Progress("reading what there is"))
    with ExitStack() as stack:
        choice = Choice(site, tuple(keys), token_key, format)
        feed = open_feed(source, choice, tokens, context, rows, stack)
        plan = make_plan(feed, model, stored)
        _before_writing(feed, plan, storage, rows)
        writer = StoreWriter.create(storage, plan)
        stack.callback(writer.close)
        Run(feed, writer, report).run()
    from actstore.store.open_store import open as open_store

    store = open_store(out, dict(options or {}))
    tell_non_finite(store)
    return store


def _before_writing(feed: Feed, plan: Plan, storage: Storage, rows: int | None) -> None:
    """What is to be said first. Raises ExistsError where an iterator would have to go
    on with another's store.
    """
    if isinstance(feed, IteratorFeed) and storage.exists(keys.plan_key()):
        raise ExistsError(
            f"{storage.url}: an unfinished store is there, and an iterator cannot go on"
            " where another stopped; remove it and import again, or choose another"
            " place"
        )
    if feed.left_out:
        note(
            f"left out: {', '.join(feed.left_out)}; name arrays with --key, token ids"
            " with --token-key"
        )
    there = None if feed.n_sequences is None else feed.n_sequences * feed.context
    if rows is not None and there not in {None, rows}:
        note(
            f"{there:,} rows, {feed.n_sequences:,} sequences of {feed.context}"
            f" ({rows:,} were asked)"
        )
    if feed.narrows:
        note(f"float64 values are narrowed to {plan.spec.dtype}")


def _check(stored: Mapping[str, Any], **counts: int | None) -> None:
    if wrong := sorted(set(stored) - set(Stored.__annotations__)):
        raise SpecError(
            f"{', '.join(wrong)}: an import has no such option; it has"
            f" {', '.join(Stored.__annotations__)}"
        )
    for name, count in counts.items():
        if count is not None and count < 1:
            raise SpecError(f"{name}: wanted 1 or more, got {count}")


def open_feed(
    source: Any,
    choice: Choice,
    tokens: Any,
    context: int | None,
    rows: int | None,
    stack: ExitStack,
) -> Feed:
    """What to read; its files are closed with the stack. Raises SourceError, SpecError."""
    tokens = ids_in_memory(tokens)
    if are_paths(source):
        plain, named = split_named(source)
        table = table_of_files(plain, named, choice, tokens)
    elif (
        isinstance(source, Mapping) and source and all(map(are_paths, source.values()))
    ):
        table = table_of_files((), source, choice, tokens)
    else:
        _no_files(choice)
        if not isinstance(source, Mapping) and not hasattr(source, "dtype"):
            if tokens is not None:
                raise SpecError(
                    "tokens of an iterator come with its items: (tokens, {site: array})"
                )
            if not isinstance(source, Iterable):
                raise SpecError(
                    "wanted paths, arrays or an iterator of arrays, got"
                    f" {type(source).__name__}"
                )
            return IteratorFeed(iter(source), choice.site, context, rows)
        table = table_of_arrays(_by_site(source, choice.site), tokens)
    stack.callback(table.close)
    return TableFeed(table, context, rows)


def _by_site(source: Any, site: str | None) -> Mapping[str, Any]:
    """Arrays in memory by site."""
    if isinstance(source, Mapping):
        if site is not None:
            raise SpecError(
                f"site {site!r}: the arrays have names already; leave it out"
            )
        if not source:
            raise SpecError("there are no arrays; wanted {site: array}")
        return source
    if site is None:
        raise SpecError("an array without a name: give the site it is of (`site=`)")
    return {site: source}


def _no_files(choice: Choice) -> None:
    given = {
        "keys": choice.keys,
        "token_key": choice.token_key,
        "format": choice.format != "auto",
    }
    if wrong := [name for name, value in given.items() if value]:
        raise SpecError(
            f"{', '.join(wrong)}: these are about files, and no file is imported"
        )
