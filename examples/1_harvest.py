"""Harvest the MLP outputs of a small model that ships with the package, and look at how
their norms go with depth.

Each script goes on from the one before it, in the folder where you run them.
"""

from __future__ import annotations

import numpy as np

import actstore

STORE = "example/store"
SITES = [f"blocks.{layer}.hook_mlp_out" for layer in range(6)]


def main() -> None:
    # A harvest that was stopped goes on where it was: the same call again. A store that
    # is finished is not overwritten.
    store = actstore.harvest(
        {
            "model": "builtin:tiny",
            "corpus": "builtin:stdlib",
            "sites": SITES,
            "tokens": "100k",
        },
        STORE,
    )

    # Statistics are part of a store: no pass over the data is needed for them.
    for site in SITES:
        mean_norm = store.norms[site].all.mean_norm
        print(f"{site:22} mean norm {mean_norm:6.2f}  {'#' * round(4 * mean_norm)}")

    # A row id is the same token at every site, so rows can be compared across layers.
    rows = store.rows("held_out")[:1000]
    first, last = store.read(SITES[0], rows), store.read(SITES[-1], rows)
    print(f"{len(rows)} rows of width {first.shape[1]} at the first and last layer")
    norms = np.stack([np.linalg.norm(values, axis=1) for values in (first, last)])
    print(f"correlation of their norms: {np.corrcoef(norms)[0, 1]:.2f}")


if __name__ == "__main__":
    main()
