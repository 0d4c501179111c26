"""The content id of a store: the digest of all that it holds.

It is made from the digests of the store's plans and unit records.
"""

from __future__ import annotations

from collections.abc import Sequence

from blake3 import blake3

from schemas.manifest import Generation, StoreManifest

# Begins the content id of a store that was not finished yet; its plan's digest follows.
FOLLOWED = "followed-"


def content_id(generations: Sequence[Generation]) -> str:
    """Return the content id that these generations make.

    It is blake3 over the digests of their plans and of their units' records, in order.
    """
    text = "".join(g.plan_digest + g.units_digest for g in generations)
    return blake3(text.encode()).hexdigest()


def content_ids(manifest: StoreManifest) -> tuple[str, ...]:
    """Return every content id that a store goes by, newest first.

    These are its own, those that it had before each `extend`, and what a stream that
    followed its first harvest called it.
    """
    generations = manifest.generations
    n_earlier = range(len(generations) - 1, 0, -1)
    earlier = [content_id(generations[:n_kept]) for n_kept in n_earlier]
    followed = f"{FOLLOWED}{generations[0].plan_digest}"
    return (manifest.content_id, *earlier, followed)
