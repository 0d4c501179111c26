"""Measures what an SAE does to the language model whose activations it replaces.

For each site, with that site alone replaced, in nats per token (docs/metrics.md): the
cross-entropy (CE) of the next token with the model untouched, with the site's
reconstruction, with zeros and with the site's stored mean in its place; the share of
the CE lost by ablation that the reconstruction recovers; and KL(clean || patched) of
the next-token distributions. Special tokens and padding keep their activations, and
nothing is predicted from them. A model that does not predict the next token is refused
(`patched_language_model.py`).

What replaces a transcoder's target is what it makes of its input. A crosscoder's sites
are replaced one at a time, by its reconstruction from the activations of all of them.

A batch runs through the untouched model once, for all sites; then each site's three
replacements run together, from the site on (`patched_passes.py`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from actstore.model.checkpoint_files import confirm_code
from actstore.model.load_model import load_model
from actstore.model.loaded_weights import check_whole
from actstore.model.model_folder import name_with_path
from actstore.store.store import Store
from schemas.records import ModelMetrics
from schemas.source import ModelSource
from trainer.errors import RunError
from trainer.evaluation.metric_definitions import recovered
from trainer.evaluation.patched_language_model import Subject
from trainer.evaluation.patched_passes import (
    CleanPass,
    Patch,
    PatchedPasses,
    Tokens,
)
from trainer.runs.notes import Tell, as_warning
from trainer.runs.trained_sae import TrainedSae

SEQUENCES = 64  # sequences that are run, unless another number is asked for
BATCH = 16  # sequences that are run at once, at most
BATCH_BYTES = 1 << 30  # of logits and log-probabilities of a batch, about
# [B, context, vocabulary] that are there at once: logits of five passes (one is the
# untouched, one a copy of it), probabilities, log-probabilities, and what is between.
_AT_ONCE = 10


def model_metrics(
    sae: TrainedSae,
    store: Store,
    model: str | None = None,
    n_sequences: int = SEQUENCES,
    device: str = "cpu",
    tick: Callable[[int, int], None] | None = None,
    subject: Subject | None = None,
    tell: Tell = as_warning,
) -> tuple[ModelMetrics, ...]:
    """Measure an SAE's effect on the language model, one site at a time.

    Args:
        sae: The SAE.
        store: The store, which knows the model and holds the tokens.
        model: Where the model is now; None for where the harvest found it.
        n_sequences: How many of the first held-out sequences are run.
        device: Where the model runs.
        tick: Is told how many are done of how many batches of the sites.
        subject: What `subject_of` gave for the same SAE, store and model, if it has
            been called already.
        tell: Is given a note where the model can only be run as a whole.

    Returns:
        The metrics of each site.

    Raises:
        RunError: As `subject_of`.
        ModelError: As `subject_of`.
    """
    subject = subject or subject_of(sae, store, model, device)
    tokens = torch.from_numpy(held_out_tokens(store, n_sequences)).to(device)
    passes = PatchedPasses(subject, tell)
    replaced = [_replaced_site(sae, store, index) for index in range(len(sae.sites))]
    sums = [SiteSums() for _ in replaced]
    batches = tokens.split(_batch_size(store))
    n_done = 0
    for padded in batches:
        batch, clean = _clean_batch(sae, store, passes, padded, replaced)
        for site, site_sums in zip(replaced, sums, strict=True):
            _add_site(sae, passes, clean, batch, site, site_sums)
            n_done += 1
            if tick is not None:
                tick(n_done, len(batches) * len(replaced))
    return tuple(
        site_sums.metrics(name) for name, site_sums in zip(sae.sites, sums, strict=True)
    )


def subject_of(
    sae: TrainedSae,
    store: Store,
    model: str | None = None,
    device: str = "cpu",
    *,
    trust_remote_code: bool = False,
) -> Subject:
    """Load the language model that a store was harvested from.

    Args:
        sae: The SAE whose sites are going to be replaced.
        store: The store.
        model: Where the model is now; None for where the harvest found it.
        device: Where the model runs.
        trust_remote_code: Run code that comes with the model. It has to be said again
            even where the harvest was told so.

    Raises:
        RunError: The model's weights are not those that were harvested, or are not
            known, or the model does not predict the next token.
        ModelError: The model cannot be loaded as a whole.
    """
    if store.manifest.imported is not None:
        raise RunError(
            f"{store.url}: its activations were imported, so it is not known which"
            " model's weights they are of; what an SAE does to a model is measured on"
            " a store that was harvested (leave out --ce and --model)"
        )
    source = store.manifest.spec.model
    if model is None:
        confirm_code(source, trust_remote_code, store.url)
    else:
        source = ModelSource(
            name=model, dtype=source.dtype, trust_remote_code=trust_remote_code
        )
    loaded = load_model(source, device)
    if loaded.info.weights_digest != store.manifest.model.weights_digest:
        raise RunError(
            f"{name_with_path(source.name)}: its weights are not those that {store.url}"
            " was harvested from; say where the model lies with --model"
        )
    check_whole(loaded)
    return Subject(loaded, [*sae.sites, *sae.record.targets])


def held_out_tokens(store: Store, n_sequences: int) -> NDArray[np.int64]:
    """Return the first held-out sequences, int64 [n, context]; -1 is padding.

    A store that holds nothing out gives its first sequences.
    """
    per_unit = store.layout.unit_sequences
    end_of_store = store.manifest.n_sequences
    sequences: list[int] = []
    for unit in store.units("held_out") or store.units():
        first = unit * per_unit
        end = min(first + per_unit, end_of_store)
        sequences.extend(range(first, end))
    return store.tokens(np.array(sequences[:n_sequences])).astype(np.int64)


def special_mask(tokens: Tensor, store: Store) -> Tensor:
    """Return where special tokens and padding are: bool [...] for int64 [...]."""
    special = torch.tensor(
        store.manifest.model.special_tokens or [-1], device=tokens.device
    )
    return (tokens < 0) | torch.isin(tokens, special)


@dataclass
class SiteSums:
    """Sums over the positions that predict, in nats: cross-entropies and KL."""

    n_tokens: int = 0
    clean: float = 0.0
    sae: float = 0.0
    zero: float = 0.0
    mean: float = 0.0
    kl: float = 0.0

    def metrics(self, site: str) -> ModelMetrics:
        """Return the means; over no tokens they are NaN."""
        n = self.n_tokens or math.nan
        clean, sae = self.clean / n, self.sae / n
        zero, mean = self.zero / n, self.mean / n
        return ModelMetrics(
            site=site,
            tokens=self.n_tokens,
            ce_clean=clean,
            ce_sae=sae,
            ce_zero=zero,
            ce_mean=mean,
            recovered_zero=recovered(zero, sae, clean),
            recovered_mean=recovered(mean, sae, clean),
            kl=self.kl / n,
        )


class _ReplacedSite(NamedTuple):
    """One site that is replaced (of a transcoder, one target).

    Attributes:
        layer: The index of the SAE's layer.
        name: The site.
        mean: Its mean in the store, float32 [d].
    """

    layer: int
    name: str
    mean: Tensor


class _Predictions(NamedTuple):
    """The positions of a batch that predict, and an untouched model's predictions.

    Attributes:
        where: The positions that the next token is predicted from, bool [B, context
            - 1]; there are n.
        next_ids: The tokens that come next, int64 [n].
        log_p: log p(next token) of the untouched model, float32 [n, vocabulary].
        p: The same probabilities, float32 [n, vocabulary].
    """

    where: Tensor
    next_ids: Tensor
    log_p: Tensor
    p: Tensor


def _replaced_site(sae: TrainedSae, store: Store, index: int) -> _ReplacedSite:
    name = sae.record.targets[index] if sae.record.targets else sae.sites[index]
    mean = torch.from_numpy(store.mean(name)).float()
    return _ReplacedSite(index, name, mean)


def _batch_size(store: Store) -> int:
    """Return how many sequences are run at once."""
    numbers = _AT_ONCE * store.layout.context * store.manifest.model.vocabulary
    return max(1, min(BATCH, BATCH_BYTES // (4 * numbers)))


@torch.no_grad()
def _clean_batch(
    sae: TrainedSae,
    store: Store,
    passes: PatchedPasses,
    padded: Tensor,
    replaced: Sequence[_ReplacedSite],
) -> tuple[_Predictions, CleanPass]:
    """Run the untouched model on a batch, int64 [B, context]; -1 is padding."""
    keeps_own = special_mask(padded, store)
    is_token = padded >= 0
    attention = None if bool(is_token.all()) else is_token.long()
    ids = padded.clamp_min(0)
    sites = [*sae.sites, *(site.name for site in replaced)]
    clean = passes.clean(Tokens(ids, attention, keeps_own), sites)
    # Ordinary tokens that have a token after them.
    where = ~keeps_own[:, :-1] & is_token[:, 1:]
    log_p = _log_probabilities(clean.logits, where)
    return _Predictions(where, ids[:, 1:][where], log_p, log_p.exp()), clean


@torch.no_grad()
def _add_site(
    sae: TrainedSae,
    passes: PatchedPasses,
    clean: CleanPass,
    batch: _Predictions,
    site: _ReplacedSite,
    sums: SiteSums,
) -> None:
    """Add a batch's figures for one site to its sums."""
    mean = site.mean.to(batch.p.device)
    patches: tuple[Patch, ...] = (
        partial(_reconstruction, sae, site.layer, clean.activations),
        torch.zeros_like,
        lambda x: mean.to(x.dtype).expand_as(x),
    )
    with_sae, with_zero, with_mean = passes.patched(clean, site.name, patches)
    sums.n_tokens += len(batch.next_ids)
    sums.clean += _cross_entropy(batch.log_p, batch.next_ids)
    log_q = _log_probabilities(with_sae, batch.where)
    sums.sae += _cross_entropy(log_q, batch.next_ids)
    differences = batch.log_p - log_q
    sums.kl += float((batch.p * differences).sum(-1).sum(dtype=torch.float64))
    del log_q, differences
    for_zero = _log_probabilities(with_zero, batch.where)
    sums.zero += _cross_entropy(for_zero, batch.next_ids)
    for_mean = _log_probabilities(with_mean, batch.where)
    sums.mean += _cross_entropy(for_mean, batch.next_ids)


def _reconstruction(
    sae: TrainedSae, index: int, clean_activations: dict[str, Tensor], x: Tensor
) -> Tensor:
    """Return what the SAE puts in the place of a site's activations x.

    clean_activations: those of its input sites, [B, context, d], model untouched.
    """
    if sae.of_all_sites:
        every = [clean_activations[name] for name in sae.sites]
        again = sae.reconstruct(torch.stack(every, dim=-2))[..., index, :]
    else:
        again = sae.reconstruct(clean_activations[sae.sites[index]], index)
    return again.to(x.dtype)


def _log_probabilities(logits: Tensor, where: Tensor) -> Tensor:
    """Return log p(next token) at the positions of `where`, float32 [n, vocabulary].

    Args:
        logits: [B, context, vocabulary].
        where: bool [B, context - 1].
    """
    return logits[:, :-1][where].float().log_softmax(dim=-1)


def _cross_entropy(log_p: Tensor, next_ids: Tensor) -> float:
    """Return the sum of -log p of the next tokens, for [n, vocabulary] and [n]."""
    chosen = log_p.gather(-1, next_ids[:, None])
    return float(-chosen.sum(dtype=torch.float64))
