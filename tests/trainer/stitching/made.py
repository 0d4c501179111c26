"""SAEs made by hand, whose latents and what they share are known."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from pydantic import TypeAdapter
from safetensors.torch import save as save_tensors
from torch import Tensor

from actstore.format.storage import Storage
from actstore.store.store import Store
from schemas.records import RunRecord
from schemas.sae import SaeSpec
from tests.support import make_store
from trainer.saes.build import build
from trainer.stitching.dictionary import Dictionary

SITE = "blocks.0.hook_mlp_out"
D = 12
SMALL, LARGE = 6, 9


def axes(d: int = D) -> Tensor:
    """Orthonormal directions [d, d], none of them an axis."""
    made = torch.Generator().manual_seed(11)
    return torch.linalg.qr(torch.randn(d, d, generator=made, dtype=torch.float64))[0]


def directions() -> tuple[Tensor, Tensor]:
    """Decoder rows of a small and a large SAE.

    The large one has latents 0 to 4 of the small one; latents 5 and 6 are what the
    small one's 5 is split into (cosine 0.8 each); 7 and 8 are new.
    """
    q = axes()
    small = q[:SMALL]
    split = torch.stack([0.8 * q[5] + 0.6 * q[8], 0.8 * q[5] - 0.6 * q[8]])
    return small, torch.cat([q[:5], split, q[6:8]])


def random_dictionary(
    n_latents: int, d: int = D, seed: int = 0, thresholds: bool = False
) -> Dictionary:
    """Random weights in float64, about a third of latents firing."""
    made = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=made, dtype=torch.float64)

    b_enc = 0.5 * draw(n_latents) - 1
    zeros = torch.zeros_like(b_enc)
    return Dictionary(
        W_enc=draw(d, n_latents) / d**0.5,
        b_enc=b_enc,
        threshold=draw(n_latents).abs() if thresholds else zeros,
        slope=draw(n_latents).exp() if thresholds else zeros + 1,
        b_mag=draw(n_latents) if thresholds else b_enc,
        W_dec=draw(n_latents, d),
        b_dec=draw(d),
    )


def random_rows(n: int, d: int = D, seed: int = 1) -> list[Tensor]:
    """Rows in float64, in blocks of several sizes."""
    made = torch.Generator().manual_seed(seed)
    whole = 2 * torch.randn(n, d, generator=made, dtype=torch.float64)
    return list(whole.split([n // 3, n // 2, n - n // 3 - n // 2]))


def codes(n: int, seed: int) -> np.ndarray:
    """Sparse codes [n, 9] of the large SAE's directions, not below 0."""
    draws = np.random.default_rng(seed)
    fires = draws.random((n, LARGE)) < 0.25
    # Of the two that one latent is split into at most one fires.
    fires[:, 6] &= ~fires[:, 5]
    return fires * (1 + draws.random((n, LARGE)))


def known_store(url: str) -> Store:
    """Rows that are sparse sums of the large SAE's directions, plus a mean."""
    rows = directions()[1].numpy()

    def values(site: str, sequence: np.ndarray, position: np.ndarray) -> np.ndarray:
        del site
        seed = int(sequence.sum()) * 31 + len(position)
        return codes(len(position), seed) @ rows + 0.5

    return make_store(
        url, {SITE: D}, values=values, n_units=24, unit_sequences=4, dtype="float32"
    )


def make_run(
    url: str,
    rows: Tensor,
    store: Store | None = None,
    *,
    spec: dict[str, Any] | None = None,
    bias: float = -0.3,
    scale: float = 1.0,
    sites: Sequence[str] = (SITE,),
    encoder: Tensor | None = None,
    **fields: Any,
) -> str:
    """A finished run whose decoder rows are `rows`, in original units.

    Its encoder is `encoder` or the transposed decoder; it sees rows less 0.5, times
    `scale`.
    """
    n_latents, d = rows.shape
    made: SaeSpec = TypeAdapter(SaeSpec).validate_python(
        {"kind": "relu_l1", **(spec or {}), "n_latents": n_latents}
    )
    sae = build(made, d, n_sites=len(sites))
    tensors = {name: value.clone() for name, value in sae.state_dict().items()}
    tensors["W_dec"] = rows.float().contiguous()
    if "W_enc" in tensors:
        tensors["W_enc"] = (rows.T if encoder is None else encoder).float().contiguous()
    for name in ("b_enc", "b_gate", "b_mag"):
        if name in tensors:
            tensors[name] = torch.full((n_latents,), scale * bias)
    tensors["scale"] = torch.full((len(sites),), scale)
    tensors["mean"] = torch.full((len(sites), d), 0.5)
    record = RunRecord(
        sae=made,
        d=d,
        n_latents=n_latents,
        sites=tuple(sites),
        rescale="unit",
        center=True,
        **{
            "store": store.url if store else "",
            "content_id": store.manifest.content_id if store else "",
            "model": "synthetic",
            "steps": 7,
            "rows": 700,
            "seed": 0,
            **fields,
        },
    )
    storage = Storage(url)
    storage.put("sae.safetensors", save_tensors(tensors))
    storage.put("sae.json", record.to_json().encode())
    return url
