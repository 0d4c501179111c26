"""What a store holds, in lines for people."""

from __future__ import annotations

from typing import TYPE_CHECKING

from schemas.manifest import StoreManifest

if TYPE_CHECKING:
    from actstore.store.store import Store


def describe(store: Store) -> list[tuple[str, str]]:
    """Lines of `actstore info`: (name, value)."""
    m, layout = store.manifest, store.layout
    raw = (
        m.n_rows
        * sum(site.d for site in m.sites)
        * {"float32": 4, "int8": 1}.get(m.spec.dtype, 2)
    )
    held = m.n_rows - m.n_train_rows
    widths = sorted({site.d for site in m.sites})
    return [
        ("store", store.url),
        ("content id", m.content_id),
        *_origin(m),
        (
            "sites",
            f"{len(m.sites)} of d {', '.join(map(str, widths))}: {_short(store.sites)}",
        ),
        (
            "rows",
            f"{m.n_rows:,} per site: {m.n_train_rows:,} training, {held:,} held out",
        ),
        *([("not finite", _short(tuple(bad)))] if (bad := _non_finite(store)) else []),
        (
            "units",
            (
                f"{m.n_units} of {layout.unit_sequences} sequences, chunks of"
                f" {layout.chunk_rows} rows"
            ),
        ),
        (
            "stored as",
            (
                f"{m.spec.dtype}, {m.spec.codec}: {m.n_bytes / 1e6:,.1f} MB,"
                f" {m.n_bytes / raw:.2f} of the values"
            ),
        ),
        ("format", f"{m.format_version}.{m.format_minor}"),
    ]


def _non_finite(store: Store) -> list[str]:
    """Rows with a NaN or an infinity, by site; of a store that is still being harvested
    they are not known.
    """
    from actstore.store.non_finite import non_finite

    if not store.manifest.files:
        return []
    return [f"{n:,} rows at {site}" for site, n in non_finite(store).items()]


def _origin(m: StoreManifest) -> list[tuple[str, str]]:
    """Where the activations come from: a model and a corpus, or files."""
    spec, found = m.spec, m.imported
    if found is None:
        return [
            (
                "model",
                (
                    f"{spec.model.name} ({m.model.architecture}, {m.model.n_layers}"
                    f" layers, {spec.model.dtype})"
                ),
            ),
            (
                "corpus",
                (
                    f"{spec.corpus.name}, contexts of {spec.context},"
                    f" {'packed' if spec.pack else 'not packed'}"
                ),
            ),
        ]
    kinds = sorted({f"{one.format}, {one.dtype}" for one in found.arrays})
    size = sum(one.bytes for one in found.files)
    files = (
        f": {_short(tuple(one.name for one in found.files))} ({size / 1e6:,.1f} MB)"
        if found.files
        else ""
    )
    return [
        ("model", f"{spec.model.name} (not harvested here)"),
        ("imported", f"{'; '.join(kinds)}{files}"),
        ("tokens", found.tokens or "not known"),
        (
            "contexts",
            (
                f"of {spec.context}"
                if found.contexts
                else "not known: each row counts as a sequence of its own"
            ),
        ),
    ]


def _short(names: tuple[str, ...]) -> str:
    return ", ".join(names) if len(names) <= 3 else f"{names[0]}, ..., {names[-1]}"
