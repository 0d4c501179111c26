"""Keys of a store's objects: where each of them lies below the store's root."""

from __future__ import annotations

PLAN = "plan.json"  # the first object that a harvest writes
MANIFEST = "manifest.json"  # the last one
COPY = "copy.json"  # there only while a store is being copied
README = "README.md"
NORMS_FIGURE = "norms.svg"
CROISSANT = "croissant.json"
CARD = (README, NORMS_FIGURE, CROISSANT)  # made from the manifest


def acts_key(site: str) -> str:
    """Return the key of the array with a site's activations."""
    return f"acts/{site}"


def norm_key(site: str) -> str:
    """Return the key of the array with the norms of a site's rows."""
    return f"norm/{site}"


def scale_key(site: str) -> str:
    """Return the key of the array with the int8 scale of each of a site's rows."""
    return f"scale/{site}"


def step_key(site: str) -> str:
    """Return the key of the array with a site's int8 channel means and steps."""
    return f"step/{site}"


def chunk_key(array: str, *index: int) -> str:
    """Return the key of a chunk; for a sharded array, of a shard.

    It is in Zarr's default v3 encoding: `chunk_key("tokens", 3, 0)` is `tokens/c/3/0`.
    """
    return "/".join([array, "c", *map(str, index)])


def plan_key(generation: int = 0) -> str:
    """Return the key of a generation's plan."""
    return _of_generation("plan", generation) + ".json"


def units_prefix(generation: int = 0) -> str:
    """Return the folder of a generation's unit records."""
    return _of_generation("units", generation)


def unit_key(unit: int, generation: int = 0) -> str:
    """Return the key of a unit's record."""
    return f"{units_prefix(generation)}/{unit:05d}.json"


def unit_stats_key(unit: int, generation: int = 0) -> str:
    """Return the key of a unit's statistics."""
    return f"{units_prefix(generation)}/{unit:05d}.stats"


def columns_prefix(generation: int = 0) -> str:
    """Return the folder of the unit columns."""
    return _of_generation("columns", generation)


def merged_stats_key(generation: int = 0) -> str:
    """Return the key of the statistics merged over units."""
    return _of_generation("norms", generation) + ".stats"


def block_key(unit: int) -> str:
    """Return the key of the record of a unit's tokens."""
    return f"blocks/{unit:05d}.json"


def claim_key(unit: int) -> str:
    """Return the key by which a worker claims to read a unit's tokens."""
    return f"claims/{unit:05d}.json"


def _of_generation(name: str, generation: int) -> str:
    """Return a name for a generation: `plan`, then `plan-1`, `plan-2`.

    Later generations never touch an object that an open reader may use.
    """
    return f"{name}-{generation}" if generation else name
