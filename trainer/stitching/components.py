"""Groups of similar latents of two dictionaries: the swaps between them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainer.analysis.cosines import Pairs


class Swap(NamedTuple):
    """A connected component of the graph of similar latents.

    Attributes:
        parents: Latents of the small SAE, which a swap takes out, int64 [p], ascending.
        children: Latents of the large SAE, which it puts in, int64 [q], ascending.
        max_cosine: The largest cosine of its pairs.
        mean_cosine: Their mean.
        pairs: How many pairs it has.
    """

    parents: Tensor
    children: Tensor
    max_cosine: float
    mean_cosine: float
    pairs: int


def swaps_of(pairs: Pairs, m_a: int, m_b: int) -> list[Swap]:
    """Return the connected components of a bipartite graph, by their first parent.

    Args:
        pairs: The edges: pairs of similar latents.
        m_a: Latents of the small SAE.
        m_b: Latents of the large SAE.
    """
    if not len(pairs.a):
        return []
    at_a = pairs.a.cpu().numpy()
    at_b = pairs.b.cpu().numpy()
    cosines = pairs.cosine.double().cpu().numpy()
    root = _roots(at_a, at_b + m_a, m_a + m_b)
    # Components numbered by their smallest node, which is a parent.
    nodes = np.unique(np.concatenate([at_a, at_b + m_a]))
    names, component = np.unique(root[nodes], return_inverse=True)
    of_pair = np.searchsorted(names, root[at_a])
    n_pairs = np.bincount(of_pair, minlength=len(names))
    largest = np.full(len(names), -np.inf)
    np.maximum.at(largest, of_pair, cosines)
    means = np.bincount(of_pair, cosines, len(names)) / n_pairs
    order = np.argsort(component, kind="stable")
    ends = np.cumsum(np.bincount(component))[:-1]
    swaps = []
    for number, members in enumerate(np.split(nodes[order], ends)):
        parents = members[members < m_a]
        children = members[members >= m_a] - m_a
        swaps.append(
            Swap(
                torch.from_numpy(parents),
                torch.from_numpy(children),
                float(largest[number]),
                float(means[number]),
                int(n_pairs[number]),
            )
        )
    return swaps


def _roots(
    one: NDArray[np.int64],
    other: NDArray[np.int64],
    n_nodes: int,
) -> NDArray[np.int64]:
    """Return the smallest node that each node is connected with, int64 [n_nodes].

    Each round takes the smaller root over each edge, then shortens the ways to roots.

    Args:
        one: First ends of the edges, int64 [n].
        other: Second ends, int64 [n].
        n_nodes: Number of nodes.
    """
    root = np.arange(n_nodes)
    while True:
        before = root.copy()
        low = np.minimum(root[one], root[other])
        # The roots of both ends, too, so that whole trees are joined at once.
        for ends in (one, other, before[one], before[other]):
            np.minimum.at(root, ends, low)
        root = root[root]
        if np.array_equal(root, before):
            return root
