"""The output tokens that a latent's direction makes likelier, and less likely.

A direction w that is written into the residual stream goes, if nothing else changes
it, through the last norm's gain g into the unembedding: logits = (w * g) W_U^T, where
a LayerNorm also takes the mean off w. The norm's own scale is left out, and so is what
later layers make of w. Logits are centred over the vocabulary, since a constant changes
no probability.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from actstore.errors import ActstoreError
from actstore.model.checkpoint_files import confirm_code
from actstore.model.load_model import LoadedModel, load_model
from actstore.store.store import Store
from schemas.source import ModelSource
from trainer.runs.trained_sae import TrainedSae

TOKENS = 10  # that are shown at either end
BINS = 41
# Hooks whose width may be the residual stream's by chance, but which write elsewhere.
_INSIDE = re.compile(r"hook_(rot_)?[qkvz]$|hook_(q|k|v)_input$|hook_pre$|hook_post$")


class Unembedding(NamedTuple):
    """The last norm and the output matrix, which come after the residual stream.

    Attributes:
        weight: [vocabulary, d].
        gain: Of the last norm, [d].
        centres: Whether that norm takes the mean off.
    """

    weight: Tensor
    gain: Tensor
    centres: bool


class Effects(NamedTuple):
    """Logits of some latents' directions.

    Attributes:
        boosted: The tokens of the largest logits, int64 [n, TOKENS].
        boosted_logits: float32 [n, TOKENS].
        suppressed: The tokens of the smallest, the smallest first.
        suppressed_logits: float32 [n, TOKENS].
        ends: The smallest and the largest logit, float32 [n, 2].
        histogram: Tokens in each of BINS equal parts between them, int32 [n, BINS].
    """

    boosted: NDArray[np.int64]
    boosted_logits: NDArray[np.float32]
    suppressed: NDArray[np.int64]
    suppressed_logits: NDArray[np.float32]
    ends: NDArray[np.float32]
    histogram: NDArray[np.int32]


def unembedding_of(
    sae: TrainedSae,
    store: Store,
    model: str | None = None,
    *,
    trust_remote_code: bool = False,
) -> Unembedding | str:
    """Return the unembedding of a store's language model, or why there is none.

    Args:
        sae: The SAE, whose directions are to be seen through it.
        store: The store.
        model: Where the model is now; None for where the harvest found it.
        trust_remote_code: Run code that comes with the model.
    """
    reason = _no_place(sae, store)
    if reason is not None:
        return reason
    source = store.manifest.spec.model
    if model is None:
        confirm_code(source, trust_remote_code, store.url)
    else:
        source = ModelSource(
            name=model, dtype=source.dtype, trust_remote_code=trust_remote_code
        )
    try:
        loaded = load_model(source, str(sae.device))
    except ActstoreError as error:
        return f"the language model cannot be loaded: {error}"
    if loaded.info.weights_digest != store.manifest.model.weights_digest:
        return f"{source.name} is another model than the store's: say with --model"
    return _of_width(_unembedding(loaded), sae.record.d_out or sae.d)


def _no_place(sae: TrainedSae, store: Store) -> str | None:
    """Return why an SAE's directions are none of the residual stream's, if so."""
    if sae.of_all_sites:
        return "a crosscoder's latent writes to several sites at once"
    sites = sae.record.targets or sae.sites
    inside = [site for site in sites if _INSIDE.search(site)]
    if inside:
        return f"{inside[0]} does not write into the residual stream"
    if store.manifest.imported is not None:
        return "the activations were imported, so the model's weights are not known"
    return None


def _of_width(found: Unembedding | str, width: int) -> Unembedding | str:
    """Return an unembedding if it is of the width of what is seen through it."""
    if isinstance(found, str) or found.weight.shape[1] == width:
        return found
    return (
        f"the sites are of width {width}, the residual stream of"
        f" {found.weight.shape[1]}, so they do not write into it"
    )


@torch.no_grad()
def _unembedding(loaded: LoadedModel) -> Unembedding | str:
    """Return the unembedding of a model, or why it is not found."""
    module: nn.Module = loaded.module
    getter = getattr(module, "get_output_embeddings", None)
    head = None if getter is None else getter()
    weight = getattr(head, "weight", None)
    if not isinstance(weight, Tensor) or weight.ndim != 2:
        return "the language model has no unembedding"
    weight = weight.float()
    norm = _last_norm(module, weight.shape[1])
    if norm is None:
        return Unembedding(weight, torch.ones_like(weight[0]), centres=False)
    return Unembedding(weight, *_linear_part(norm, weight))


def _last_norm(module: nn.Module, d: int) -> nn.Module | None:
    """Return the norm of width d after the last block; None where there is none."""
    found = None
    for name, part in module.named_modules():
        weight = getattr(part, "weight", None)
        is_norm = isinstance(weight, Tensor) and tuple(weight.shape) == (d,)
        # What lies in a block has the block's number in its name.
        if is_norm and not any(word.isdigit() for word in name.split(".")):
            found = part
    return found


def _linear_part(norm: nn.Module, weight: Tensor) -> tuple[Tensor, bool]:
    """Return a norm's gain [d], and whether it takes the mean off, by trying it.

    Norms name and store their gains in different ways (Gemma's is 1 + weight). A row
    of +1 and -1 in turn has mean 0 and mean square 1, so that it comes out as itself
    times the gain; a constant row comes out as nothing where the mean is taken off.
    """
    d = weight.shape[1]
    signs = torch.ones(d, device=weight.device)
    signs[1::2] = -1
    kind = next(norm.parameters()).dtype
    both = norm(torch.stack([signs, -signs]).to(kind)).float()
    gain = (both[0] - both[1]) / 2 * signs
    ones = torch.ones(2, d, device=weight.device)
    ones[1] = -1
    constant = norm(ones.to(kind)).float()
    apart = (constant[0] - constant[1]).abs().mean() / 2
    return gain, bool(apart < 0.1 * gain.abs().mean())


@torch.no_grad()
def effects_of(
    directions: Tensor, through: Unembedding, memory: int
) -> Iterator[Effects]:
    """Yield the effects of directions, some at a time.

    Args:
        directions: [m, d].
        through: The unembedding.
        memory: Bytes that the logits of a block may take.
    """
    vocabulary = len(through.weight)
    size = max(1, min(256, memory // (16 * vocabulary)))
    for block in directions.split(size):
        written = block.float()
        if through.centres:
            written = written - written.mean(dim=1, keepdim=True)
        logits = (written * through.gain) @ through.weight.T
        logits -= logits.mean(dim=1, keepdim=True)
        yield _effects(logits)


def _effects(logits: Tensor) -> Effects:
    """Return what is shown of logits [n, vocabulary]."""
    n_shown = min(TOKENS, logits.shape[1])
    high = logits.topk(n_shown, dim=1)
    low = logits.topk(n_shown, dim=1, largest=False)
    ends = torch.stack([low.values[:, 0], high.values[:, 0]], dim=1)
    width = (ends[:, 1:] - ends[:, :1]).clamp_min(1e-30)
    place = ((logits - ends[:, :1]) / width * BINS).long().clamp_(0, BINS - 1)
    counts = torch.zeros(len(logits), BINS, dtype=torch.int64, device=logits.device)
    counts.scatter_add_(1, place, torch.ones_like(place))
    return Effects(
        high.indices.cpu().numpy(),
        high.values.cpu().numpy(),
        low.indices.cpu().numpy(),
        low.values.cpu().numpy(),
        ends.cpu().numpy(),
        counts.to(torch.int32).cpu().numpy(),
    )
