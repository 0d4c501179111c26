"""The digests in a stream's state: of the store's units and of the spec.

They tell whether a state belongs to a store and a spec.
"""

from __future__ import annotations

from typing import NamedTuple

from blake3 import blake3

from actstore.errors import SiteError, SpecError
from actstore.store.followed import finished_store
from actstore.store.streamed_store import StreamedStore
from actstore.stream.columns import Columns, columns_of
from schemas.stream import StreamSpec, StreamState


class StateDigests(NamedTuple):
    """Digests in a state, in hexadecimal.

    Attributes:
        store: The digest of the store's units, their layout and the sites read.
        spec: The digest of the window's size and of the spec, except for fields that
            change no batch.
    """

    store: str
    spec: str


def state_digests(
    store: StreamedStore, spec: StreamSpec, columns: Columns, window_chunks: int
) -> StateDigests:
    """Return the digests that a stream's states hold."""
    units = "".join(
        generation.units_digest for generation in store.manifest.generations
    )
    # These two grow while a harvest goes on; the rest of the layout does not.
    layout = store.layout.model_copy(update={"n_sequences": 1, "n_units": 1})
    pinned = f"{units} {layout.to_json()} {columns.planes}"
    # Other values of these change no batch. What `memory` and `window_chunks` lead to
    # is the size of the window, which is pinned itself.
    fixed_spec = spec.model_copy(
        update={"memory": 1, "epochs": None, "limit_rows": None, "window_chunks": None}
    )
    return StateDigests(
        store=blake3(pinned.encode()).hexdigest(),
        spec=blake3(f"{fixed_spec.to_json()} {window_chunks}".encode()).hexdigest(),
    )


def store_of_state(
    store: StreamedStore, spec: StreamSpec, state: StreamState
) -> StreamedStore:
    """Return the store as it was when a state was taken: before later generations.

    Raises:
        SpecError: The state is of another store.
    """
    n_generations = len(store.manifest.generations)
    for n_earlier in range(n_generations - 1, 0, -1):
        earlier = finished_store(store).before(n_earlier)
        try:
            columns = columns_of(earlier, spec)
        except SiteError:
            # That generation did not have the sites that the spec names.
            continue
        # The window's size is of no account for the digest that is compared.
        digests = state_digests(earlier, spec, columns, window_chunks=0)
        if digests.store == state.store:
            return earlier
    raise SpecError(
        f"{store.url}: this state is of another store (its units or sites differ); open"
        " the one that the stream was of"
    )
