"""Lists what is published in a catalog: stores, and runs with their metrics."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

from actstore import arguments
from actstore.arguments import checked, optional
from actstore.catalog.catalog import Catalog, Entry, Record
from actstore.catalog.names import PREFIX, SHOWN_ID
from actstore.catalog.published_url import opened_url
from actstore.catalog.tags import all_tags
from actstore.console.user_warnings import warn
from actstore.errors import CatalogError
from schemas.catalog import Kind, PublishedRun, PublishedStore


class Publication(NamedTuple):
    """A store or run that is published.

    Attributes:
        name: What opens it, such as `catalog:gpt2-tinystories`: with a tag, or with the
            beginning of its content id where no tag leads to it.
        url: Where it lies.
        tags: The tags that lead to it.
        record: What is known of it.
    """

    name: str
    url: str
    tags: tuple[str, ...]
    record: Record


class CatalogContents(NamedTuple):
    """The publications that a catalog lists, and the records that cannot be read.

    Attributes:
        catalog: The catalog's URL.
        publications: Sorted by name, then by time.
        problems: A line for each object that is no record, or cannot be read.
    """

    catalog: str
    publications: list[Publication]
    problems: list[str]


@checked(
    kind=arguments.choice("store", "run"),
    catalog=optional(arguments.folder),
    name=optional(arguments.text),
    model=optional(arguments.text),
    corpus=optional(arguments.text),
    site=optional(arguments.text),
)
def published(
    kind: Kind = "store",
    *,
    catalog: str | os.PathLike[str] | None = None,
    name: str | None = None,
    model: str | None = None,
    corpus: str | None = None,
    site: str | None = None,
) -> list[Publication]:
    """Return the stores or runs that are published in a catalog, sorted by name.

    Filters are names or patterns, in which `*` stands for anything.

    Args:
        kind: "store" or "run".
        catalog: The catalog's folder or URL; None: the one that ACTSTORE_CATALOG names.
        name: A pattern of names in the catalog.
        model: A pattern of names of language models.
        corpus: A pattern of names of corpora; runs have none.
        site: A pattern that one of its sites must have.

    Raises:
        SpecError: No catalog is known.
        CatalogError: There is no such folder, or it has too many records.
        StorageError: The place cannot be reached.

    Examples:
        >>> import actstore
        >>> _ = actstore.publish("stores/small", "mini-mlp", catalog="team")
        >>> [found.name for found in actstore.published(catalog="team", model="*mini")]
        ['catalog:mini-mlp:latest']
    """
    place = Catalog(arguments.path_or_none(catalog))
    patterns = {"name": name, "model": model, "corpus": corpus, "site": site}
    found = list_published(place, kind, patterns)
    for problem in found.problems:
        warn(problem, UserWarning)
    return found.publications


def list_published(
    catalog: Catalog, kind: Kind, patterns: dict[str, str | None]
) -> CatalogContents:
    """Return what is published, as far as it has the patterns.

    Args:
        catalog: The catalog.
        kind: Stores or runs.
        patterns: By what they are of; None for any.

    Raises:
        CatalogError: There is no such folder.
    """
    listing = catalog.listing(kind)
    if not listing.entries and not listing.problems:
        _check_there(catalog)
    tags: dict[tuple[str, str], list[str]] = {}
    for key, digest in all_tags(catalog, kind):
        tags.setdefault((key.name, digest), []).append(key.tag)
    publications = []
    for entry in listing.entries:
        if _has_patterns(entry.record, patterns):
            of_entry = tags.get((entry.key.name, entry.key.digest), [])
            publications.append(_publication(catalog, entry, tuple(of_entry)))
    return CatalogContents(catalog.url, publications, listing.problems)


def _check_there(catalog: Catalog) -> None:
    """Raise CatalogError for a catalog's folder that is not there: a slip in a path."""
    if catalog.storage.local is not None and not catalog.storage.is_folder():
        raise CatalogError(
            f"{catalog.url}: wanted a catalog, but there is no such folder; check the"
            " path (`actstore publish` makes it)"
        )


def _publication(catalog: Catalog, entry: Entry, tags: tuple[str, ...]) -> Publication:
    version = tags[0] if tags else entry.record.content_id[:SHOWN_ID]
    return Publication(
        name=f"{PREFIX}{entry.record.name}:{version}",
        url=opened_url(entry.record.url, catalog.url),
        tags=tags,
        record=entry.record,
    )


def _has_patterns(record: Record, patterns: dict[str, str | None]) -> bool:
    """Return whether a record has all patterns that are asked for."""
    values: dict[str, tuple[str, ...]] = {
        "name": (record.name,),
        "model": (record.model,),
        "site": record.sites,
    }
    if isinstance(record, PublishedStore):
        values["corpus"] = (record.corpus or "",)
    if isinstance(record, PublishedRun):
        values["sae"] = (record.sae,)
    for what, pattern in patterns.items():
        if pattern is None:
            continue
        if not any(fnmatchcase(value, pattern) for value in values.get(what, ())):
            return False
    return True


METRICS: dict[str, Callable[[PublishedRun], float | None]] = {
    "fvu": lambda run: None if run.metrics is None else run.metrics.fvu,
    "l0": lambda run: None if run.metrics is None else run.metrics.l0,
    # the best come first
    "ce-recovered": lambda run: _negative(_ce_recovered(run)),
    "latents": lambda run: run.n_latents,
}
"""The metric that runs are sorted by, the smallest first."""


def sorted_runs(found: list[Publication], metric: str) -> list[Publication]:
    """Return runs sorted by a metric, the best first; those without it come last."""

    def order(one: Publication) -> tuple[bool, float]:
        assert isinstance(one.record, PublishedRun)
        value = METRICS[metric](one.record)
        is_known = value is not None and not math.isnan(value)
        return not is_known, value if value is not None and is_known else 0.0

    return sorted(found, key=order)


def _ce_recovered(run: PublishedRun) -> float | None:
    return None if run.metrics is None else run.metrics.ce_recovered


def _negative(value: float | None) -> float | None:
    return None if value is None else -value


def as_json(found: list[Publication]) -> list[dict[str, Any]]:
    """Return publications as a script reads them: what opens each, then its record."""
    return [
        {
            "opens": one.name,
            "tags": list(one.tags),
            **one.record.model_dump(mode="json"),
            "url": one.url,
        }
        for one in found
    ]
