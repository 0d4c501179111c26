"""The order of sites: by the number of their layer, as it stands in their names."""

from __future__ import annotations

import re
from collections.abc import Iterable

_NUMBER = re.compile(r"(?:^|\.)(\d+)(?=\.|$)")


def layer_number(site: str) -> int | None:
    """Return the layer's number: 3 for `blocks.3.hook_mlp_out`; None without one."""
    found = _NUMBER.search(site)
    return None if found is None else int(found.group(1))


def family(site: str) -> str:
    """Return a site's name without its layer: `blocks.*.hook_mlp_out`.

    Sites of one family lie at the same place of different layers.
    """
    found = _NUMBER.search(site)
    if found is None:
        return site
    return f"{site[: found.start(1)]}*{site[found.end(1) :]}"


def in_layer_order(sites: Iterable[str]) -> list[str]:
    """Return the distinct sites by layer; those of one layer stay in their order.

    Sites without a number come last.
    """
    distinct = list(dict.fromkeys(sites))
    return sorted(distinct, key=_sort_key)


def short_site(site: str) -> str:
    """Return a site's name for an axis: `blocks.3.hook_mlp_out` as `3 mlp_out`."""
    parts = site.split(".")
    # Names of other models' modules have no shape that could be relied on.
    if len(parts) <= 2 or parts[0] != "blocks":
        return site
    inside_block = ".".join(parts[2:]).replace("hook_", "")
    return f"{parts[1]} {inside_block}"


def _sort_key(site: str) -> tuple[bool, int]:
    number = layer_number(site)
    return number is None, number or 0
