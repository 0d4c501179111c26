"""The firings of an SAE on rows: which latents are above 0 where, and by how much."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainer.kernels.topk_select import top_k_of_product
from trainer.runs.trained_sae import TrainedSae
from trainer.saes.shape import encoder_input
from trainer.saes.topk import TopKSae

Ints = NDArray[np.int64]
MOST_ROWS = 4096  # rows that are encoded at once
COPIES = 3  # pre-activations, latents, and the comparison with 0


class Codes(NamedTuple):
    """Nonzero latents of some rows, in the order of rows.

    Attributes:
        row: The row's index, int64 [n], ascending.
        latent: int32 [n].
        value: What `TrainedSae.encode` gives there, float32 [n], above 0.
    """

    row: Ints
    latent: NDArray[np.int32]
    value: NDArray[np.float32]


class Firings(NamedTuple):
    """Firings on rows of some sites, and where these rows come from.

    Rows of one sequence at one site lie together, by position.

    Attributes:
        row_id: The row's id in the store, int64 [r].
        sequence: Its sequence, int64 [r].
        position: Its position there, int64 [r].
        site: Index of its site, int64 [r].
        codes: The nonzeros on these rows.
    """

    row_id: Ints
    sequence: Ints
    position: Ints
    site: Ints
    codes: Codes


def joined(parts: list[Firings]) -> Firings:
    """Return the firings of several lots of rows as one."""
    firsts = np.cumsum([0, *(len(part.row_id) for part in parts)])
    codes = Codes(
        np.concatenate(
            [
                part.codes.row + first
                for part, first in zip(parts, firsts[:-1], strict=True)
            ]
        ),
        np.concatenate([part.codes.latent for part in parts]),
        np.concatenate([part.codes.value for part in parts]),
    )
    return Firings(
        np.concatenate([part.row_id for part in parts]),
        np.concatenate([part.sequence for part in parts]),
        np.concatenate([part.position for part in parts]),
        np.concatenate([part.site for part in parts]),
        codes,
    )


def block_rows(n_latents: int, memory: int) -> int:
    """Return how many rows are encoded at once within some bytes."""
    dense_row = 4 * n_latents * COPIES
    return max(1, min(MOST_ROWS, memory // dense_row))


@torch.no_grad()
def codes_of(
    sae: TrainedSae, rows: NDArray[np.float32], index: int | None, size: int
) -> Codes:
    """Return the nonzero latents of rows in original units.

    Args:
        sae: The SAE.
        rows: [n, d]; of a crosscoder [n, n_sites, d].
        index: The index of their site; None for a crosscoder.
        size: Rows that are encoded at once.
    """
    parts: list[Codes] = []
    for first in range(0, len(rows), size):
        block = torch.from_numpy(rows[first : first + size]).to(sae.device)
        row, latent, value = _nonzeros(sae, block, index)
        parts.append(
            Codes(
                row.cpu().numpy() + first,
                latent.to(torch.int32).cpu().numpy(),
                value.float().cpu().numpy(),
            )
        )
    if not parts:
        return Codes(np.zeros(0, int), np.zeros(0, np.int32), np.zeros(0, np.float32))
    return Codes(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def _nonzeros(
    sae: TrainedSae, block: Tensor, index: int | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return row, latent and value of each nonzero of a block."""
    part = sae.sae.latents_part
    if isinstance(part, TopKSae) and index is not None:
        return _top_k(sae, part, block, index)
    latents = sae.encode(block) if index is None else sae.encode(block, index)
    row, latent = (latents > 0).nonzero(as_tuple=True)
    return row, latent, latents[row, latent]


def _top_k(
    sae: TrainedSae, part: TopKSae, block: Tensor, index: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the same of a TopK, whose latents never become a dense matrix."""
    scaled = sae.scaled(block, index)
    inputs = encoder_input(scaled, part.b_dec, index, part.shape)
    k = part.spec.k
    values, latents = top_k_of_product(inputs, part.encoder, part.encoder_bias, k)
    row = torch.arange(len(block), device=block.device).repeat_interleave(k)
    fires = values.flatten() > 0
    return row[fires], latents.flatten()[fires], values.flatten()[fires]
