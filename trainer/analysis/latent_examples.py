"""Latents that fire at many layers, and the contexts where they fire most.

Spread of a latent: exp of the entropy of its firings over layers, p_l proportional to
firings_l / rows_l (methods, section 1): the effective number of layers.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from actstore.store.store import Store
from schemas.sae import Crosscoder
from trainer.evaluate.metrics import layer_shares, spread
from trainer.runs.trained_sae import TrainedSae

BEFORE, AFTER = 12, 6
LOW, HIGH = 1e-4, 2e-2


class Context(NamedTuple):
    """One firing: its strength, its site, and the text before, at and after its token."""

    value: float
    site: str
    before: str
    token: str
    after: str


class Example(NamedTuple):
    """One latent: frequency over all rows, effective layers, share of firings by layer
    [n_layers], best contexts.

    variance: of its activation over the layers of one token (rows are aligned across
    sites), mean over tokens, in original units.
    """

    latent: int
    frequency: float
    layers: float
    shares: list[float]
    contexts: list[Context]
    variance: float


def widest(
    firings: Tensor, rows: Tensor, n: int, low: float = LOW, high: float = HIGH
) -> Tensor:
    """The n latents of widest spread among those of a frequency within [low, high] (of
    all that fire, if none is).
    """
    frequency = firings.sum(dim=0).double() / rows.sum()
    width = spread(layer_shares(firings, rows))
    inside = (frequency >= low) & (frequency <= high)
    chosen = inside if inside.any() else frequency > 0
    return width.masked_fill(~chosen, -1).topk(min(n, int(chosen.sum()))).indices


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
    """Examples from the held-out rows (training rows where there are none)."""
    latents = widest(firings, rows, n_latents)
    ids = store.rows("held_out")
    ids = ids if len(ids) else store.rows()[:20_000]
    values = _activations(sae, store, ids, latents)
    frequency = firings.sum(dim=0).double() / rows.sum()
    shares = layer_shares(firings, rows)
    width = spread(shares)
    text = _Text(store, trust=trust_remote_code)
    out = []
    for j, latent in enumerate(latents.tolist()):
        contexts = [
            text.context(value, sae.sites[site], ids[row])
            for value, site, row in _best(values[:, :, j], n_contexts)
        ]
        rate, by_layer = float(frequency[latent]), shares[:, latent].tolist()
        out.append(
            Example(
                latent,
                rate,
                float(width[latent]),
                by_layer,
                contexts,
                layer_variance(values[:, :, j]),
            )
        )
    return out


def layer_variance(values: Tensor) -> float:
    """Population variance over layers of one latent on aligned rows [n_layers, n_rows],
    mean over rows.
    """
    return float(values.double().var(dim=0, correction=0).mean())


@torch.no_grad()
def _activations(
    sae: TrainedSae, store: Store, ids: np.ndarray, latents: Tensor
) -> Tensor:
    """Chosen latents on aligned rows: [n_sites, n_rows, n_latents], in original units.

    A crosscoder's latent counts at each site by the norm of its decoder there.
    """
    out = torch.zeros(len(sae.sites), len(ids), len(latents))
    if isinstance(sae.spec, Crosscoder):
        weights = sae.decoder[latents].norm(dim=2) / sae.scale
        for first in range(0, len(ids), 4096):
            x = np.stack(
                [store.read(site, ids[first : first + 4096]) for site in sae.sites],
                axis=1,
            )
            found = sae.encode(torch.from_numpy(x))[:, latents]
            out[:, first : first + 4096] = (found[:, :, None] * weights).permute(
                2, 0, 1
            )
        return out
    for i, site in enumerate(sae.sites):
        parts = [
            sae.encode(x, site)[:, latents]
            for x in torch.from_numpy(store.read(site, ids)).split(4096)
        ]
        out[i] = torch.cat(parts) / float(sae.scale_out[i])
    return out


def _best(values: Tensor, n: int) -> list[tuple[float, int, int]]:
    """The strongest firings [n_sites, n_rows], half of them over all layers, the rest
    one per further layer.
    """
    order = values.flatten().argsort(descending=True)[: 50 * n].tolist()
    found = [
        (float(values.flatten()[i]), *divmod(i, values.shape[1]))
        for i in order
        if values.flatten()[i] > 0
    ]
    chosen: list[tuple[float, int, int]] = []
    seen_rows: set[int] = set()
    seen_sites: set[int] = set()
    for one in found:
        if (
            one[2] not in seen_rows
            and (len(chosen) < n // 2 or one[1] not in seen_sites)
            and len(chosen) < n
        ):
            chosen.append(one)
            seen_rows.add(one[2])
            seen_sites.add(one[1])
    return chosen


class _Text:
    """Decodes the tokens around a row."""

    def __init__(self, store: Store, *, trust: bool) -> None:
        self._store, self._tokenizer = store, store.tokenizer(trust_remote_code=trust)

    def context(self, value: float, site: str, row: int) -> Context:
        if not self._store.manifest.has_tokens:
            return Context(
                value,
                site,
                "",
                f"row {row}: imported without tokens, so there is no text",
                "",
            )
        found = self._store.provenance([row])
        sequence, at = int(found.sequence[0]), int(found.position[0])
        ids = self._store.tokens([sequence])[0]
        before, after = ids[max(0, at - BEFORE) : at], ids[at + 1 : at + 1 + AFTER]
        return Context(
            value,
            site,
            self._decode(before),
            self._decode(ids[at : at + 1]),
            self._decode(after),
        )

    def _decode(self, ids: np.ndarray) -> str:
        kept = [int(i) for i in ids if i >= 0]
        if self._tokenizer is None:
            return " ".join(map(str, kept))
        return str(self._tokenizer.decode(kept))
