"""Finds latents that fire at many layers, and the contexts where they fire most.

The spread of a latent is the effective number of layers of its firings
(docs/methods.md, "1. Multi-layer SAE"; `evaluation/metric_definitions.py`).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from actstore.store.store import Store
from trainer.evaluation.metric_definitions import layer_shares, spread
from trainer.runs.trained_sae import TrainedSae

# Tokens shown before and after the one where a latent fires.
BEFORE = 12
AFTER = 6
# Frequencies of the latents that are shown: rarer ones have few contexts, more frequent
# ones say little.
LOW = 1e-4
HIGH = 2e-2
BLOCK = 4096  # rows that are encoded at once
# Training rows that are looked at, if a store holds no rows out.
MOST_TRAINING_ROWS = 20_000
# How many of the strongest firings are looked at, for each context that is shown.
LOOKED_AT = 50


class Context(NamedTuple):
    """One firing of a latent.

    Attributes:
        value: Its strength, in original units.
        site: The site it fired at.
        before: The text before its token.
        token: The text of its token.
        after: The text after its token.
    """

    value: float
    site: str
    before: str
    token: str
    after: str


class Example(NamedTuple):
    """One latent.

    Attributes:
        latent: Its number.
        frequency: The share of all rows on which it fires.
        layers: Its effective number of layers.
        shares: How its firings are spread over layers, [n_layers].
        contexts: Where it fires most.
        variance: Variance of its activation over the layers of one token, as the mean
            over tokens, in original units.
    """

    latent: int
    frequency: float
    layers: float
    shares: list[float]
    contexts: list[Context]
    variance: float


class _Firing(NamedTuple):
    """One firing among the rows that are looked at: its strength, and indices."""

    value: float
    site: int
    row: int


def widest(
    firings: Tensor, rows: Tensor, n: int, low: float = LOW, high: float = HIGH
) -> Tensor:
    """Return the latents of widest spread among those of middling frequency.

    Args:
        firings: On how many rows each latent fired, int64 [n_layers, m].
        rows: Rows of each layer, int64 [n_layers].
        n: How many latents are wanted.
        low: The lowest frequency.
        high: The highest. Where no latent is in between, all that fire are considered.

    Returns:
        Numbers of latents, int64 [at most n], widest first.
    """
    frequency = firings.sum(dim=0).double() / rows.sum()
    width = spread(layer_shares(firings, rows))
    eligible = (frequency >= low) & (frequency <= high)
    if not eligible.any():
        eligible = frequency > 0
    n_found = min(n, int(eligible.sum()))
    return width.masked_fill(~eligible, -1).topk(n_found).indices


def compute_examples(
    sae: TrainedSae,
    store: Store,
    firings: Tensor,
    rows: Tensor,
    n_latents: int,
    n_contexts: int = 6,
    *,
    trust_remote_code: bool = False,
) -> list[Example]:
    """Return the widest latents with the contexts where they fire most.

    Args:
        sae: The SAE.
        store: The store; its held-out rows are looked at, or the first training rows
            where it holds none out.
        firings: On how many rows each latent fired, int64 [n_layers, m].
        rows: Rows of each layer, int64 [n_layers].
        n_latents: How many latents are wanted.
        n_contexts: How many contexts of each.
        trust_remote_code: Run code that the store keeps with its tokenizer.
    """
    latents = widest(firings, rows, n_latents)
    ids = store.rows("held_out")
    if not len(ids):
        ids = store.rows()[:MOST_TRAINING_ROWS]
    values = _activations(sae, store, ids, latents)
    frequency = firings.sum(dim=0).double() / rows.sum()
    shares = layer_shares(firings, rows)
    width = spread(shares)
    text = _Text(store, trust=trust_remote_code)
    examples = []
    for j, latent in enumerate(latents.tolist()):
        values_of_latent = values[:, :, j]
        contexts = [
            text.context(firing.value, sae.sites[firing.site], int(ids[firing.row]))
            for firing in _strongest(values_of_latent, n_contexts)
        ]
        example = Example(
            latent=latent,
            frequency=float(frequency[latent]),
            layers=float(width[latent]),
            shares=shares[:, latent].tolist(),
            contexts=contexts,
            variance=layer_variance(values_of_latent),
        )
        examples.append(example)
    return examples


def layer_variance(values: Tensor) -> float:
    """Return the variance over layers of one latent, mean over tokens.

    values: its activations on the same tokens of every layer, [n_layers, n_rows].
    """
    return float(values.double().var(dim=0, correction=0).mean())


@torch.no_grad()
def _activations(
    sae: TrainedSae, store: Store, ids: NDArray[np.int64], latents: Tensor
) -> Tensor:
    """Return chosen latents on the same rows of every site, in original units.

    A crosscoder's latent counts at each site by the norm of its decoder there.

    Returns:
        float32 [n_sites, n_rows, n_latents].
    """
    values = torch.zeros(len(sae.sites), len(ids), len(latents))
    if sae.of_all_sites:
        weights = sae.decoder[latents].norm(dim=2) / sae.scale
        for first in range(0, len(ids), BLOCK):
            some_ids = ids[first : first + BLOCK]
            rows = np.stack([store.read(site, some_ids) for site in sae.sites], axis=1)
            encoded = sae.encode(torch.from_numpy(rows))[:, latents]
            by_row = encoded[:, :, None] * weights  # [n_rows, n_latents, n_sites]
            values[:, first : first + BLOCK] = by_row.permute(2, 0, 1)
        return values
    for i, site in enumerate(sae.sites):
        rows_of_site = torch.from_numpy(store.read(site, ids))
        blocks = [
            sae.encode(block, site)[:, latents] for block in rows_of_site.split(BLOCK)
        ]
        values[i] = torch.cat(blocks) / float(sae.scale_out[i])
    return values


def _strongest(values: Tensor, n: int) -> list[_Firing]:
    """Return n of the strongest firings of a latent, no two of the same row.

    The first half are the strongest of all; after them each is of a site that has not
    been shown yet, so that other layers are seen too.

    values: [n_sites, n_rows].
    """
    flat = values.flatten()
    n_rows = values.shape[1]
    chosen: list[_Firing] = []
    rows_shown: set[int] = set()
    sites_shown: set[int] = set()
    for i in flat.argsort(descending=True)[: LOOKED_AT * n].tolist():
        value = float(flat[i])
        if value <= 0 or len(chosen) >= n:
            break
        site, row = divmod(i, n_rows)
        is_wanted = len(chosen) < n // 2 or site not in sites_shown
        if row not in rows_shown and is_wanted:
            chosen.append(_Firing(value, site, row))
            rows_shown.add(row)
            sites_shown.add(site)
    return chosen


class _Text:
    """Decodes the tokens around a row."""

    def __init__(self, store: Store, *, trust: bool) -> None:
        self._store = store
        self._tokenizer = store.tokenizer(trust_remote_code=trust)

    def context(self, value: float, site: str, row: int) -> Context:
        """Return the context of a firing at a row (its id)."""
        if not self._store.manifest.has_tokens:
            no_text = f"row {row}: imported without tokens, so there is no text"
            return Context(value, site, "", no_text, "")
        provenance = self._store.provenance([row])
        sequence = int(provenance.sequence[0])
        position = int(provenance.position[0])
        tokens = self._store.tokens([sequence])[0]
        before = tokens[max(0, position - BEFORE) : position]
        token = tokens[position : position + 1]
        after = tokens[position + 1 : position + 1 + AFTER]
        return Context(
            value, site, self._decode(before), self._decode(token), self._decode(after)
        )

    def _decode(self, tokens: NDArray[np.int32]) -> str:
        without_padding = [int(token) for token in tokens if token >= 0]
        if self._tokenizer is None:
            return " ".join(map(str, without_padding))
        return str(self._tokenizer.decode(without_padding))
