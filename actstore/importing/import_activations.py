"""Make a store of activations that exist already.

They lie in files or in memory, or come from an iterator of arrays.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

from actstore import arguments
from actstore.arguments import checked, optional
from actstore.console.user_warnings import warn
from actstore.errors import ExistsError, HarvestWarning, SpecError
from actstore.format import object_keys
from actstore.format.storage import Storage
from actstore.harvesting.harvest_warnings import warn_of_non_finite
from actstore.harvesting.progress import Progress, Report, silent
from actstore.harvesting.store_writer import StoreWriter, check_unfinished
from actstore.importing.array_checks import are_paths, tokens_in_memory
from actstore.importing.import_plan import make_plan
from actstore.importing.import_worker import ImportWorker
from actstore.importing.sequence_feed import ArrayFeed, Feed, IteratorFeed
from actstore.importing.site_arrays import (
    Selection,
    arrays_in_memory,
    arrays_of_files,
    split_named,
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


@checked(
    out=arguments.folder,
    site=optional(arguments.text),
    keys=arguments.texts,
    token_key=optional(arguments.text),
    format=arguments.text,
    context=optional(arguments.count),
    rows=optional(arguments.count),
    model=arguments.text,
    options=optional(arguments.mapping),
    progress=optional(arguments.callback),
)
def import_activations(
    source: Any,
    out: str | os.PathLike[str],
    *,
    site: str | None = None,
    keys: str | Sequence[str] = (),
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
    """Make a store of activations that exist already.

    An unfinished import of the same files or arrays goes on where it stopped; that of
    an iterator cannot.

    Args:
        source: A path or several (npy, pt, safetensors, hdf5, parquet, zarr, a SAELens
            cache; see `actstore import`), a dict {site: paths} or {site: array}, an
            array of one site, or an iterator of arrays, of dicts {site: array} or of
            (tokens, {site: array}). Arrays, numpy or torch, are [n, d] or
            [n_sequences, context, d], the same rows at every site; they are read once,
            in order, in bounded memory.
        out: Where the store goes: any fsspec URL.
        site: The name of the one site, where arrays or files have none.
        keys: Which arrays of the files to take; none: all that can be sites.
        tokens: Token ids of the same rows, integers [n_sequences, context] or [n]: an
            array or, beside files, a path. -1 is padding, a row that is not kept,
            wherever it stands; the others keep their positions.
        token_key: The name of the token ids in their file, or beside the activations.
        format: The files' format; `auto`: told from their names.
        context: Tokens per sequence, where rows [n, d] are whole sequences one after
            the other. Without it (and without arrays that show it) each row is a
            sequence of its own, and its position is not known.
        rows: Take at most so many rows, rounded up to a sequence.
        model: What the activations are of; nothing is loaded.
        options: Options of `out`'s file system.
        progress: Is told how far the import is.
        **stored: How values are stored, as in a harvest.

    Returns:
        The finished store.

    Raises:
        SourceError: A file or an array cannot be imported.
        SpecError: An option cannot be used.
        NumericsError: Values are too large for the storage dtype, or a site has no
            finite row, or none among its first few hundred.
        ExistsError: A store is there already.
        StorageError: The store's place cannot be written.

    Examples:
        >>> import actstore
        >>> import numpy as np
        >>> rows = np.random.default_rng(0).standard_normal((1000, 16), np.float32)
        >>> store = actstore.import_activations(rows, "imported", site="layer_3")
        >>> store.sites
        ('layer_3',)
        >>> store.read("layer_3").shape
        (1000, 16)
    """
    report = progress or silent
    storage = Storage(out, dict(options or {}))
    # First of all: sources may be large, and a finished store is never written to.
    check_unfinished(storage)
    _check_stored(stored)
    report(Progress("reading what there is"))
    with ExitStack() as stack:
        selection = Selection(site, tuple(keys), token_key, format)
        feed = open_feed(source, selection, tokens, context, rows, stack)
        plan = make_plan(feed, model, stored)
        # `create` below joins an unfinished import whose plan is the same.
        _check_resumable(feed, storage)
        _tell_what_differs(feed, plan, rows)
        writer = StoreWriter.create(storage, plan)
        stack.callback(writer.close)
        ImportWorker(feed, writer, report).run()
    from actstore.store.open_store import open as open_store

    store = open_store(out, dict(options or {}))
    warn_of_non_finite(store)
    return store


def _check_resumable(feed: Feed, storage: Storage) -> None:
    """Refuse an iterator that would have to go on with another's store."""
    if isinstance(feed, IteratorFeed) and storage.exists(object_keys.plan_key()):
        raise ExistsError(
            f"{storage.url}: an unfinished store is there, and an iterator cannot go on"
            " where another stopped; remove it and import again, or choose another"
            " place"
        )


def _tell_what_differs(feed: Feed, plan: Plan, rows: int | None) -> None:
    """Warn of what is imported otherwise than a user may expect."""
    if feed.left_out:
        warn(
            f"left out: {', '.join(feed.left_out)}; name arrays with --key, token ids"
            " with --token-key",
            HarvestWarning,
        )
    if rows is not None and feed.n_sequences is not None:
        n_rows = feed.n_sequences * feed.context
        if n_rows != rows:
            warn(
                f"{n_rows:,} rows, {feed.n_sequences:,} sequences of {feed.context}"
                f" ({rows:,} were asked)",
                HarvestWarning,
            )
    if feed.narrows:
        warn(f"float64 values are narrowed to {plan.spec.dtype}", HarvestWarning)


def _check_stored(stored: Mapping[str, Any]) -> None:
    unknown = sorted(set(stored) - set(Stored.__annotations__))
    if unknown:
        raise SpecError(
            f"{', '.join(unknown)}: an import has no such option; it has"
            f" {', '.join(Stored.__annotations__)}"
        )


def open_feed(
    source: Any,
    selection: Selection,
    tokens: Any,
    context: int | None,
    rows: int | None,
    stack: ExitStack,
) -> Feed:
    """Return what an import reads; its files are closed with the stack.

    Args:
        source: As in `import_activations`.
        selection: Which arrays of files to take.
        tokens: As in `import_activations`.
        context: As in `import_activations`.
        rows: As in `import_activations`.
        stack: Closes the files.

    Raises:
        SourceError: A file or an array cannot be imported.
        SpecError: An option cannot be used with this source.
    """
    tokens = tokens_in_memory(tokens)
    if are_paths(source):
        unnamed, named = split_named(source)
        arrays = arrays_of_files(unnamed, named, selection, tokens)
    elif _are_paths_by_site(source):
        arrays = arrays_of_files((), source, selection, tokens)
    else:
        _check_no_file_options(selection)
        # What has a dtype is an array: a tensor can be iterated over, too.
        is_in_memory = isinstance(source, Mapping) or hasattr(source, "dtype")
        if not is_in_memory:
            return _iterator_feed(source, selection, tokens, context, rows)
        arrays = arrays_in_memory(_by_site(source, selection.site), tokens)
    stack.callback(arrays.close)
    return ArrayFeed(arrays, context, rows)


def _are_paths_by_site(source: Any) -> bool:
    """Return whether something is a dict {site: paths}."""
    if not isinstance(source, Mapping) or not source:
        return False
    return all(are_paths(value) for value in source.values())


def _iterator_feed(
    source: Any,
    selection: Selection,
    tokens: Any,
    context: int | None,
    rows: int | None,
) -> IteratorFeed:
    if tokens is not None:
        raise SpecError(
            "tokens of an iterator come with its items: (tokens, {site: array})"
        )
    if not isinstance(source, Iterable):
        raise SpecError(
            "wanted paths, arrays or an iterator of arrays, got"
            f" {type(source).__name__}"
        )
    return IteratorFeed(iter(source), selection.site, context, rows)


def _by_site(source: Any, site: str | None) -> Mapping[str, Any]:
    """Return arrays in memory by site."""
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


def _check_no_file_options(selection: Selection) -> None:
    """Refuse options that are about files, where no file is imported."""
    given = {
        "keys": selection.keys,
        "token_key": selection.token_key,
        "format": selection.format != "auto",
    }
    names = [name for name, value in given.items() if value]
    if names:
        raise SpecError(
            f"{', '.join(names)}: these are about files, and no file is imported"
        )
