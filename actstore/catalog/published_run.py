"""Checks that the run that a name leads to is the one that was published."""

from __future__ import annotations

from typing import Any

from blake3 import blake3

from actstore.catalog.catalog import Catalog
from actstore.catalog.names import SHOWN_ID
from actstore.catalog.resolve import resolved
from actstore.errors import CatalogError, CorruptError, ObjectError
from actstore.format.object_sizes import SMALL_JSON
from actstore.format.storage import Storage

RUN = "sae.json"
WEIGHTS = "sae.safetensors"
EVALUATION = "eval.json"
MOST_WEIGHTS = 1 << 40  # bytes of weights that are read for their digest


def run_content_id(storage: Storage) -> str:
    """Return the digest of a trained SAE: of its record and of its weights.

    Raises:
        ObjectError: The run has not ended, or there is none.
    """
    digests = [
        storage.digest(RUN, SMALL_JSON)[1],
        storage.digest(WEIGHTS, MOST_WEIGHTS)[1],
    ]
    return blake3("".join(digests).encode()).hexdigest()


def checked_run_url(
    name: str, catalog: Catalog, options: dict[str, Any] | None = None
) -> str:
    """Return the URL that a run's name leads to.

    Args:
        name: The name, such as `catalog:gpt2-topk`.
        catalog: The catalog.
        options: For the run's file system.

    Raises:
        CatalogError: The name leads to nothing, or the run was removed or changed.
    """
    found = resolved(name, "run", catalog)
    try:
        content_id = run_content_id(Storage(found.url, options))
    except CorruptError:
        raise
    except ObjectError as error:
        raise CatalogError(
            f"{found.name}: the run that was published is gone: {error}"
        ) from error
    if content_id != found.content_id:
        raise CatalogError(
            f"{found.name}: the run at {found.url} was changed since it was published:"
            f" its content id is {content_id[:SHOWN_ID]}..., wanted"
            f" {found.content_id[:SHOWN_ID]}...; publish what is there now, or name"
            " another version"
        )
    return found.url
