"""The requests of a unit, by the keys that they go to.

Keys are those of `actstore/format/object_keys.py`. A *folder* is a key without the
unit's number and what follows it: within a folder all workers write neighbouring keys
at a time, so that S3 cannot divide that load any further by splitting key ranges.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from actstore.format import object_keys
from actstore.format.s3_objects import PART_BYTES, part_bytes


class UnitRequests(NamedTuple):
    """What one unit asks of the bucket.

    Attributes:
        puts: By folder, PUT and POST requests.
        gets: By folder, GET and HEAD requests.
    """

    puts: Counter[str]
    gets: Counter[str]


def unit_keys(sites: Sequence[str], unit: int) -> list[str]:
    """Return the keys of the objects that are written for a unit."""
    keys = [
        object_keys.chunk_key("tokens", unit, 0),
        object_keys.block_key(unit),
        object_keys.chunk_key("rows", unit, 0),
        object_keys.unit_stats_key(unit),
        object_keys.unit_key(unit),
    ]
    for site in sites:
        keys.append(object_keys.chunk_key(object_keys.acts_key(site), unit, 0))
        keys.append(object_keys.chunk_key(object_keys.norm_key(site), unit))
    return keys


def folder_of(key: str) -> str:
    """Return a key up to where the unit's number begins."""
    parts = key.split("/")
    # `acts/SITE/c/12/0`: behind the last `c`; `units/00012.json`: the folder.
    if "c" in parts[:-1]:
        last = len(parts) - 1 - parts[::-1].index("c")
        return "/".join(parts[: last + 1])
    return parts[0]


def requests_of_put(n_bytes: float) -> int:
    """Return how many requests write an object: a large one goes in parts."""
    if n_bytes <= PART_BYTES:
        return 1
    n_parts = math.ceil(n_bytes / part_bytes(math.ceil(n_bytes)))
    return n_parts + 2  # it is begun, and completed


def unit_requests(sites: Sequence[str], shard_bytes: float) -> UnitRequests:
    """Return the requests of a unit whose token block is there already."""
    puts: Counter[str] = Counter()
    for key in unit_keys(sites, 0):
        n_bytes = shard_bytes if key.startswith("acts/") else 0.0
        puts[folder_of(key)] += requests_of_put(n_bytes)
    # Is the block there; its record; its tokens. Is the unit committed; is it claimed.
    gets = Counter({"blocks": 2, "tokens/c": 1, "units": 1, "claims": 1})
    return UnitRequests(puts, gets)
