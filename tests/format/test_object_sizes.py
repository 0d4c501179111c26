"""What a store has after each of its generations."""

from __future__ import annotations

from actstore.format.object_sizes import sizes_by_generation, stats_bytes
from schemas.manifest import Generation
from schemas.source import Site


def generation(sites: tuple[Site, ...], n_units: int, first_unit: int) -> Generation:
    return Generation(
        plan="plan",
        units="units",
        sites=sites,
        first_unit=first_unit,
        n_units=n_units,
        n_sequences=n_units,
        n_rows=n_units,
        plan_digest="0" * 64,
        units_digest="0" * 64,
    )


def test_one_from_unit_0_brings_sites_and_a_later_one_units() -> None:
    every = tuple(Site(name=f"site.{i}", d=4 + i) for i in range(5))
    first, added = every[:2], every[2:]
    sizes = list(
        sizes_by_generation(
            [
                generation(first, n_units=4, first_unit=0),
                generation(added, n_units=4, first_unit=0),
                generation(every, n_units=6, first_unit=4),
            ]
        )
    )
    assert [(size.n_units, size.n_sites) for size in sizes] == [(4, 2), (4, 5), (10, 5)]
    assert [size.stats_bytes for size in sizes] == [
        stats_bytes(first),
        stats_bytes(every),
        stats_bytes(every),
    ]
