"""Checks that the run that a name leads to is the one that was published."""

from __future__ import annotations

from typing import Any

from blake3 import blake3

from actstore.catalog.catalog import Catalog
from actstore.catalog.names import SHOWN_ID
from actstore.catalog.resolve import resolved
from actstore.errors import CatalogError, CorruptError, ObjectError
from actstore.format.json_records import parsed_json
from actstore.format.object_sizes import SMALL_JSON
from actstore.format.storage import Storage

RUN = "sae.json"
WEIGHTS = "sae.safetensors"
EVALUATION = "eval.json"
MOST_HEADER = 100 << 20  # bytes of a safetensors file's header, as its makers have it
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


def check_weights(storage: Storage) -> None:
    """Check that a run's weights are whole: a safetensors file of the length it says.

    Raises:
        ObjectError: There are none.
        CorruptError: They are cut, or no such file.
    """
    where = f"{storage.url}/{WEIGHTS}"
    size = storage.size(WEIGHTS)
    n = int.from_bytes(bytes(storage.read_ranges(WEIGHTS, [(0, 8)])[0]), "little")
    if not 2 <= n <= min(size - 8, MOST_HEADER):
        raise CorruptError(f"{where}: no safetensors file; train or copy the run again")
    header = parsed_json(bytes(storage.read_ranges(WEIGHTS, [(8, n)])[0]), where)
    try:
        tensors = [one for name, one in header.items() if name != "__metadata__"]
        end = max(int(one["data_offsets"][1]) for one in tensors)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError):
        raise CorruptError(
            f"{where}: its header lists no tensors; train or copy the run again"
        ) from None
    if size != 8 + n + end:
        raise CorruptError(
            f"{where}: {size:,} bytes, wanted {8 + n + end:,}; train or copy the run"
            " again"
        )


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
