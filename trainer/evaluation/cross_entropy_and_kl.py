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
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from actstore.model.checkpoint_files import confirm_code
from actstore.model.load_model import load_model
from actstore.model.loaded_weights import check_whole
from actstore.model.model_folder import name_with_path
from actstore.model.value_layouts import arranged, layout_of
from actstore.store.store import Store
from schemas.records import ModelMetrics
from schemas.source import ModelSource
from trainer.errors import RunError
from trainer.evaluation.metric_definitions import recovered
from trainer.evaluation.patched_language_model import Subject
from trainer.runs.module_patching import Hook
from trainer.runs.trained_sae import TrainedSae

# Takes a site's activations [B, context, d], and returns those that replace them.
Patch = Callable[[Tensor], Tensor]
SEQUENCES = 64  # sequences that are run, unless another number is asked for
BATCH = 16  # sequences that are run at once


def model_metrics(
    sae: TrainedSae,
    store: Store,
    model: str | None = None,
    n_sequences: int = SEQUENCES,
    device: str = "cpu",
    tick: Callable[[int, int], None] | None = None,
    subject: Subject | None = None,
) -> tuple[ModelMetrics, ...]:
    """Measure an SAE's effect on the language model, one site at a time.

    Args:
        sae: The SAE.
        store: The store, which knows the model and holds the tokens.
        model: Where the model is now; None for where the harvest found it.
        n_sequences: How many of the first held-out sequences are run.
        device: Where the model runs.
        tick: Is told how many of how many sites are done.
        subject: What `subject_of` gave for the same SAE, store and model, if it has
            been called already.

    Returns:
        The metrics of each site.

    Raises:
        RunError: As `subject_of`.
        ModelError: As `subject_of`.
    """
    subject = subject or subject_of(sae, store, model, device)
    tokens = torch.from_numpy(held_out_tokens(store, n_sequences)).to(device)
    keeps_own = special_mask(tokens, store)
    metrics = []
    for index in range(len(sae.sites)):
        metrics.append(_site_metrics(sae, store, subject, index, tokens, keeps_own))
        if tick is not None:
            tick(index + 1, len(sae.sites))
    return tuple(metrics)


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


@torch.no_grad()
def _site_metrics(
    sae: TrainedSae,
    store: Store,
    subject: Subject,
    index: int,
    tokens: Tensor,
    keeps_own: Tensor,
) -> ModelMetrics:
    """Measure the effect of replacing one site (of a transcoder, one target).

    tokens: int64 [n, context]; keeps_own: bool [n, context], where activations stay.
    """
    site = sae.record.targets[index] if sae.record.targets else sae.sites[index]
    mean = torch.from_numpy(store.mean(site)).to(tokens.device, torch.float32)
    # The sites whose activations the SAE needs in order to replace this one.
    sources = sae.sites if sae.of_all_sites else sae.sites[index : index + 1]
    ce_sums = dict.fromkeys(("clean", "sae", "zero", "mean"), 0.0)
    kl_sum = 0.0
    n_tokens = 0
    for padded, mask in zip(tokens.split(BATCH), keeps_own.split(BATCH), strict=True):
        is_token = padded >= 0
        # Positions that the next token is predicted from: ordinary, with a token after.
        predicts = ~mask[:, :-1] & is_token[:, 1:]
        attention = None if bool(is_token.all()) else is_token.long()
        ids = padded.clamp_min(0)
        clean_activations: dict[str, Tensor] = {}
        keep_hooks = [
            (name, _keep(clean_activations, name, ids.shape)) for name in sources
        ]
        clean = _log_probabilities(subject, ids, attention, keep_hooks)
        ce_sums["clean"] += _cross_entropy(clean, ids, predicts)
        n_tokens += int(predicts.sum())
        patches: dict[str, Patch] = {
            "sae": partial(_reconstruction, sae, index, clean_activations),
            "zero": torch.zeros_like,
            "mean": lambda x: mean.to(x.dtype).expand_as(x),
        }
        for name, patch in patches.items():
            hooks = [(site, _replace(patch, mask))]
            patched = _log_probabilities(subject, ids, attention, hooks)
            ce_sums[name] += _cross_entropy(patched, ids, predicts)
            if name == "sae":
                kl = (clean.exp() * (clean - patched)).sum(-1)[:, :-1]
                kl_sum += float((kl * predicts).sum(dtype=torch.float64))
    n = n_tokens or math.nan  # a mean over no tokens is NaN
    ce = {name: total / n for name, total in ce_sums.items()}
    return ModelMetrics(
        site=sae.sites[index],
        tokens=n_tokens,
        ce_clean=ce["clean"],
        ce_sae=ce["sae"],
        ce_zero=ce["zero"],
        ce_mean=ce["mean"],
        recovered_zero=recovered(ce["zero"], ce["sae"], ce["clean"]),
        recovered_mean=recovered(ce["mean"], ce["sae"], ce["clean"]),
        kl=kl_sum / n,
    )


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


def _keep(into: dict[str, Tensor], name: str, shape: torch.Size) -> Hook:
    """Return a hook that keeps a site's activations, [B, context, d]."""

    def hook(value: Tensor, hook: Any = None) -> Tensor:  # noqa: ARG001 (TransformerLens calls it by name)
        into[name] = _vectors(value, shape)
        return value

    return hook


def _replace(patch: Patch, keeps_own: Tensor) -> Hook:
    """Return a hook that replaces a site's activations outside `keeps_own`."""

    def hook(value: Tensor, hook: Any = None) -> Tensor:  # noqa: ARG001
        flat = _vectors(value, keeps_own.shape)
        new = patch(flat).to(flat.dtype)
        return torch.where(keeps_own[..., None], flat, new).reshape(value.shape)

    return hook


def _vectors(value: Tensor, shape: torch.Size) -> Tensor:
    """Return a site's values as [B, context, d]; they may come as a row per token."""
    layout = layout_of(value, shape)
    flat = None
    if layout in {"sequences", "rows"}:
        flat = arranged(value, layout, shape)
    if flat is None:
        raise RunError(
            f"a site has values of shape {list(value.shape)} for tokens of shape"
            f" {list(shape)}, which are not one vector for each token; leave out --ce"
        )
    return flat


def _log_probabilities(
    subject: Subject,
    ids: Tensor,
    attention: Tensor | None,
    hooks: Sequence[tuple[str, Hook]],
) -> Tensor:
    """Return log p(next token), float32 [B, context, vocabulary]."""
    return subject.logits(ids, attention, hooks).float().log_softmax(dim=-1)


def _cross_entropy(log_p: Tensor, ids: Tensor, predicts: Tensor) -> float:
    """Return the sum of -log p of the next token over the positions of `predicts`."""
    chosen = log_p[:, :-1].gather(-1, ids[:, 1:, None])[..., 0]
    return float(-(chosen * predicts).sum(dtype=torch.float64))
