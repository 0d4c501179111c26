"""Describes what a store holds, in lines for people."""

from __future__ import annotations

from typing import TYPE_CHECKING

from actstore.console.short_lists import first_and_last
from schemas.manifest import StoreManifest
from schemas.source import Imported

if TYPE_CHECKING:
    from actstore.store.streamed_store import StreamedStore

Lines = list[tuple[str, str]]
"""Names and values, as `actstore info` prints them."""

_VALUE_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4, "int8": 1}


def describe(store: StreamedStore) -> Lines:
    """Return the lines of `actstore info`: (name, value)."""
    manifest = store.manifest
    layout = store.layout
    spec = manifest.spec
    widths = sorted({site.d for site in manifest.sites})
    of_widths = f"{len(manifest.sites)} of d {', '.join(map(str, widths))}"
    n_held_out = manifest.n_rows - manifest.n_train_rows
    of_splits = f"{manifest.n_train_rows:,} training, {n_held_out:,} held out"
    of_sizes = f"{layout.unit_sequences} sequences, chunks of {layout.chunk_rows} rows"
    # Bytes against those of the bare values: below 1 by compression, above it where
    # norms, tokens and indexes take more than that saves.
    values_per_token = sum(site.d for site in manifest.sites)
    value_bytes = manifest.n_rows * values_per_token * _VALUE_BYTES[spec.dtype]
    share = manifest.n_bytes / value_bytes
    of_bytes = f"{manifest.n_bytes / 1e6:,.1f} MB, {share:.2f} of the values"
    lines = [
        ("store", store.url),
        ("content id", manifest.content_id),
        *_origin(manifest),
        ("sites", f"{of_widths}: {first_and_last(store.sites)}"),
        ("rows", f"{manifest.n_rows:,} per site: {of_splits}"),
    ]
    non_finite = _non_finite(store)
    if non_finite:
        lines.append(("not finite", first_and_last(tuple(non_finite))))
    lines += [
        ("units", f"{manifest.n_units} of {of_sizes}"),
        ("stored as", f"{spec.dtype}, {spec.codec}: {of_bytes}"),
        ("format", f"{manifest.format_version}.{manifest.format_minor}"),
    ]
    return lines


def _non_finite(store: StreamedStore) -> list[str]:
    """Return, for each site that has any, how many rows hold a NaN or an infinity."""
    from actstore.store.non_finite import non_finite

    # A store that is still being harvested has no columns yet, so nobody knows.
    if not store.manifest.files:
        return []
    counts = non_finite(store.objects)
    return [f"{count:,} rows at {site}" for site, count in counts.items()]


def _origin(manifest: StoreManifest) -> Lines:
    """Return where the activations come from: a model and a corpus, or files."""
    spec = manifest.spec
    if manifest.imported is not None:
        return _imported_origin(manifest, manifest.imported)
    model = manifest.model
    about = f"{model.architecture}, {model.n_layers} layers, {spec.model.dtype}"
    packed = "packed" if spec.pack else "not packed"
    return [
        ("model", f"{spec.model.name} ({about})"),
        ("corpus", f"{spec.corpus.name}, contexts of {spec.context}, {packed}"),
    ]


def _imported_origin(manifest: StoreManifest, imported: Imported) -> Lines:
    """Return which files the activations were imported from."""
    spec = manifest.spec
    kinds = sorted({f"{array.format}, {array.dtype}" for array in imported.arrays})
    files = ""
    if imported.files:
        names = first_and_last(tuple(file.name for file in imported.files))
        n_bytes = sum(file.bytes for file in imported.files)
        files = f": {names} ({n_bytes / 1e6:,.1f} MB)"
    contexts = "not known: each row counts as a sequence of its own"
    if imported.contexts:
        contexts = f"of {spec.context}"
    return [
        ("model", f"{spec.model.name} (not harvested here)"),
        ("imported", f"{'; '.join(kinds)}{files}"),
        ("tokens", imported.tokens or "not known"),
        ("contexts", contexts),
    ]
