"""The content id of a store: what it holds, told by the digests of its plans and unit
records.
"""

from __future__ import annotations

from collections.abc import Sequence

from blake3 import blake3

from schemas.manifest import Generation, StoreManifest

# begins the content id of a store that was not finished yet, by its plan's digest
FOLLOWED = "followed-"


def content_id(generations: Sequence[Generation]) -> str:
    """blake3 over the digests of the plans and of their units' records, in order of
    generation.
    """
    text = "".join(f"{g.plan_digest}{g.units_digest}" for g in generations)
    return blake3(text.encode()).hexdigest()


def content_ids(manifest: StoreManifest) -> tuple[str, ...]:
    """Every content id that a store goes by, newest first: its own, those that it had
    before each `extend`, and what a stream that followed its first harvest called it.
    """
    kept = manifest.generations
    earlier = (content_id(kept[:n]) for n in range(len(kept) - 1, 0, -1))
    return (manifest.content_id, *earlier, f"{FOLLOWED}{kept[0].plan_digest}")
