"""Rows whose features are known: sparse sums of many more unit directions than there
are dimensions (docs/methods.md, section 4).

In the manner of SynthSAEBench (Chanin and Garriga-Alonso 2026, arXiv:2602.14687), with
code of our own:

- superposed: more random directions than dimensions;
- power law: a feature's share of rows falls with its rank as rank^-exponent;
- correlated: each row has a topic, and each feature a home topic in whose rows it fires
  `boost` times as often;
- hierarchical, if wanted: some features are roots of trees; a child fires only if its
  parent does, and at most one of siblings;
- a firing feature adds its direction times a log-normal magnitude; then come a constant
  bias and a little noise.

A block of rows is a function of (spec, block), so that the features of held-out rows
can be made again.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from actstore.errors import SpecError
from schemas.toy import FeatureSpec

MOST = 0.9  # the largest share of a topic's rows on which a feature fires
WEIGHTS, ROWS = 1, 2  # stages of the seed

Floats = NDArray[np.float64]


class Firings(NamedTuple):
    """Which features fire on which rows, sorted by row: row, feature int64 [n],
    magnitude float32 [n].
    """

    row: NDArray[np.int64]
    feature: NDArray[np.int64]
    magnitude: NDArray[np.float32]


class KnownFeatures:
    """The features, and rows made of them. directions: float32 [n_features, d], unit
    rows; rates: float64 [n_features], the share of rows on which each fires; topic_of:
    int64 [n_free], the topic of each that may fire by itself.

    Features that may fire by themselves come first, by rank; every second of the first
    of them is a root. Children follow, generation by generation: node i of one has the
    children `branching * i + j` of the next.
    """

    def __init__(self, spec: FeatureSpec | None = None) -> None:
        self.spec = spec = spec or FeatureSpec()
        rng = np.random.default_rng([spec.seed, WEIGHTS])
        self.generations = spec.generations
        self.n_free = spec.n_free
        self.directions = _unit(rng.standard_normal((spec.n_features, spec.d)))
        self.bias = spec.bias * _unit(rng.standard_normal((1, spec.d)))[0]
        self.topic_of = rng.integers(spec.n_topics, size=self.n_free)
        weights = 1 / np.arange(1, spec.branching + 1)
        # cumulated shares of siblings
        self._children = np.cumsum(spec.child_share * weights / weights.sum())
        self.rates = self._rates()
        order = np.argsort(np.argsort(-self.rates, kind="stable"), kind="stable") / max(
            1, spec.n_features - 1
        )
        first, last = spec.magnitudes
        self._mean_magnitude = first + (last - first) * order
        self._totals, self._cumulated = self._topics()

    def firings(self, block: int, n_rows: int) -> Firings:
        """The firings of a block's rows."""
        return self._firings(self._rng(block), n_rows)

    def rows(self, block: int, n_rows: int) -> NDArray[np.float32]:
        """The block's rows, float32 [n_rows, d]."""
        rng = self._rng(block)
        fired = self._firings(rng, n_rows)
        starts = np.searchsorted(fired.row, np.arange(n_rows))
        summed = torch.nn.functional.embedding_bag(
            torch.from_numpy(fired.feature),
            torch.from_numpy(self.directions),
            torch.from_numpy(starts),
            mode="sum",
            per_sample_weights=torch.from_numpy(fired.magnitude),
        ).numpy()
        noise = rng.standard_normal(summed.shape, np.float32) * np.float32(
            self.spec.noise
        )
        rows: NDArray[np.float32] = summed + self.bias + noise
        return rows

    def _rng(self, block: int) -> np.random.Generator:
        return np.random.default_rng([self.spec.seed, ROWS, block])

    def _firings(self, rng: np.random.Generator, n_rows: int) -> Firings:
        row, feature = self._free(rng, n_rows)
        rows, features = [row], [feature]
        inside = (feature < 2 * self.spec.n_roots) & (feature % 2 == 0)
        row, node, first = row[inside], feature[inside] // 2, self.n_free
        for size in self.generations:
            which = np.searchsorted(self._children, rng.random(len(row)), side="right")
            has = which < self.spec.branching
            row, node = row[has], self.spec.branching * node[has] + which[has]
            rows.append(row)
            features.append(first + node)
            first += size
        row, feature = np.concatenate(rows), np.concatenate(features)
        order = np.argsort(row, kind="stable")
        row, feature = row[order], feature[order]
        spread = self.spec.spread
        relative = np.exp(spread * rng.standard_normal(len(row)) - spread**2 / 2)
        return Firings(
            row, feature, (self._mean_magnitude[feature] * relative).astype(np.float32)
        )

    def _free(
        self, rng: np.random.Generator, n_rows: int
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Firings of features that have no parent.

        A feature that fires independently with probability p fires at least once in a
        Poisson process of rate -log(1 - p); the sum of all features' processes is drawn
        at once, and doubles are dropped.
        """
        topic = rng.integers(self.spec.n_topics, size=n_rows)
        row = np.repeat(np.arange(n_rows), rng.poisson(self._totals[topic]))
        at = topic[row]
        ends = np.cumsum(self._totals)
        drawn = ends[at] - self._totals[at] * (1 - rng.random(len(row)))
        feature = (
            np.searchsorted(self._cumulated, drawn, side="right") - at * self.n_free
        )
        key = np.unique(row * self.n_free + feature.clip(0, self.n_free - 1))
        return key // self.n_free, key % self.n_free

    def _rates(self) -> Floats:
        """Shares of rows, scaled so that they add up to the wanted L0."""
        spec = self.spec
        free = np.arange(1, self.n_free + 1) ** -spec.exponent
        parents, parts = free[0 : 2 * spec.n_roots : 2], [free]
        shares = np.diff(self._children, prepend=0)
        for _ in self.generations:
            parents = (parents[:, None] * shares).ravel()
            parts.append(parents)
        rates: Floats = np.concatenate(parts)
        rates *= spec.l0 / rates.sum()
        if rates.max() >= MOST:
            raise SpecError(
                f"l0 {spec.l0:g}: with {spec.n_features} features and exponent"
                f" {spec.exponent:g} the most frequent one would fire on"
                f" {rates.max():.0%} of the rows, wanted below {MOST:.0%}; give a"
                " smaller l0 or exponent, or more features"
            )
        return rates

    def _topics(self) -> tuple[Floats, Floats]:
        """Rates of each topic's Poisson process [n_topics], and cumulated ones of all
        (topic, feature) pairs.
        """
        n, rates = self.spec.n_topics, self.rates[: self.n_free]
        home = np.minimum(MOST, self.spec.boost * rates)
        home = np.minimum(home, n * rates)  # elsewhere it is at least 0
        elsewhere = rates if n == 1 else (n * rates - home) / (n - 1)
        at_home = np.arange(n)[:, None] == self.topic_of
        probability = rates[None] if n == 1 else np.where(at_home, home, elsewhere)
        process = -np.log1p(-probability)
        return process.sum(axis=1), np.cumsum(process)


def _unit(x: Floats) -> NDArray[np.float32]:
    directions: Floats = x / np.linalg.norm(x, axis=1, keepdims=True)
    return directions.astype(np.float32)
