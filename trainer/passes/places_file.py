"""`STATE/places.json`: where stores may lie, for the processes that train.

A store is looked at once more when its pass begins: since it was accepted, a link may
have taken its place.
"""

from __future__ import annotations

from pathlib import Path

from actstore.errors import SpecError
from actstore.format.json_records import read_record
from actstore.format.object_sizes import SMALL_JSON
from actstore.format.storage import Storage
from schemas.service import ServicePlaces
from trainer.passes.allowed_stores import AllowedStores

NAME = "places.json"


def write_places(state: Path, stores: tuple[str, ...]) -> None:
    """Write the prefixes of stores into a service's folder of state."""
    record = ServicePlaces(stores=stores)
    Storage(state).put(NAME, record.to_json().encode())


def check_store_again(state: Path, store_url: str) -> None:
    """Check that a store that was accepted is where it was then.

    Without the file nothing is checked: the queue is used without a service.

    Args:
        state: The service's folder of state.
        store_url: Where the store lay, as it was accepted.

    Raises:
        SpecError: Something else lies there.
        CorruptError: The file cannot be read.
    """
    storage = Storage(state)
    if not storage.exists(NAME):
        return
    places = read_record(storage, NAME, ServicePlaces, SMALL_JSON)
    if AllowedStores(places.stores).check(store_url) != store_url:
        raise SpecError(
            f"store {store_url}: it has moved since it was accepted; submit the run"
            " again"
        )
