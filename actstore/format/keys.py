"""Keys of a store's objects: where each of them lies below the store's root."""

from __future__ import annotations

PLAN, MANIFEST = "plan.json", "manifest.json"


def acts_key(site: str) -> str:
    return f"acts/{site}"


def norm_key(site: str) -> str:
    return f"norm/{site}"


def scale_key(site: str) -> str:
    return f"scale/{site}"


def step_key(site: str) -> str:
    return f"step/{site}"


def chunk_key(array: str, *index: int) -> str:
    """Key of a chunk (for a sharded array: of a shard) in Zarr's default v3 encoding."""
    return "/".join([array, "c", *map(str, index)])


def plan_key(generation: int = 0) -> str:
    return _of_generation("plan", generation) + ".json"


def units_prefix(generation: int = 0) -> str:
    return _of_generation("units", generation)


def unit_key(unit: int, generation: int = 0) -> str:
    return f"{units_prefix(generation)}/{unit:05d}.json"


def unit_stats_key(unit: int, generation: int = 0) -> str:
    return f"{units_prefix(generation)}/{unit:05d}.stats"


def columns_prefix(generation: int = 0) -> str:
    return _of_generation("columns", generation)


def merged_stats_key(generation: int = 0) -> str:
    return _of_generation("norms", generation) + ".stats"


def block_key(unit: int) -> str:
    return f"blocks/{unit:05d}.json"


def claim_key(unit: int) -> str:
    return f"claims/{unit:05d}.json"


def _of_generation(name: str, generation: int) -> str:
    """Generation 0 has the plain names; later ones never touch an object that an open
    reader may use.
    """
    return f"{name}-{generation}" if generation else name
