"""The true features of a store of toy data: two objects beside its rows.

`features.safetensors` holds the directions, `features.json` says what they are of. The
latter is written last: without it a store has no known features.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from actstore.errors import CorruptError
from actstore.format.content_id import content_ids
from actstore.format.object_sizes import SMALL_JSON
from actstore.store.store import Store
from actstore.validation import validated_json
from schemas.toy import FeatureRecord, FeatureSpec

RECORD = "features.json"
TENSORS = "features.safetensors"
_HEADER_BYTES = 1 << 20


class TrueFeatures(NamedTuple):
    """The features that the rows of a store are made of.

    Attributes:
        directions: One unit vector for each, float32 [n_features, d].
        record: What they are.
    """

    directions: NDArray[np.float32]
    record: FeatureRecord


def write_true_features(
    store: Store, site: str, directions: NDArray[np.float32], spec: FeatureSpec
) -> FeatureRecord:
    """Write the features of a store's rows beside them.

    Args:
        store: The finished store.
        site: The site with the rows.
        directions: The features, float32 [n_features, d].
        spec: What rows are made of.
    """
    from safetensors.numpy import save

    data = save({"directions": np.ascontiguousarray(directions)})
    record = FeatureRecord(
        spec=spec,
        site=site,
        content_id=store.manifest.content_id,
        digest=blake3(data).hexdigest(),
    )
    store.storage.put(TENSORS, data)
    store.storage.put(RECORD, record.to_json().encode())
    return record


def read_true_features(store: Store) -> TrueFeatures | None:
    """Return the true features of a store; None where they are not known.

    Raises:
        CorruptError: They are damaged, or those of another store.
    """
    storage = store.storage
    if not storage.exists(RECORD):
        return None
    where = f"{store.url}/{RECORD}"
    record = validated_json(FeatureRecord, storage.read(RECORD, SMALL_JSON), where)
    if record.content_id not in content_ids(store.manifest):
        raise CorruptError(
            f"{where}: these are the features of another store, of content id"
            f" {record.content_id}; make the toy store again"
        )
    return TrueFeatures(_directions(store, record), record)


def _directions(store: Store, record: FeatureRecord) -> NDArray[np.float32]:
    """Return the directions that a record is of, float32 [n_features, d]."""
    from safetensors.numpy import load

    shape = (record.spec.n_features, record.spec.d)
    limit = 4 * shape[0] * shape[1] + _HEADER_BYTES
    data = store.storage.read(TENSORS, limit)
    damaged = CorruptError(
        f"{store.url}/{TENSORS}: it is not what {RECORD} says (blake3"
        f" {record.digest}, float32 {list(shape)}); copy it again"
    )
    if blake3(data).hexdigest() != record.digest:
        raise damaged
    directions = load(data).get("directions")
    if directions is None or directions.shape != shape:
        raise damaged
    float32: NDArray[np.float32] = directions.astype(np.float32, copy=False)
    return float32
