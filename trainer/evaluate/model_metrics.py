"""What an SAE does to the language model: cross-entropy and KL with one site replaced
by its reconstruction.

Per site and token, in nats: CE untouched, with the reconstruction, with zeros, with the
site's stored mean; recovered = (CE_ablated - CE_sae) / (CE_ablated - CE_clean);
KL(clean || patched) of the next-token distributions. Special tokens and padding keep
their original activations and are not predicted from. All of it is refused for a model
that does not predict the next token (`patched_subject.py`).

A transcoder's site is its target, replaced by what it makes of its input; a
crosscoder's sites are replaced one at a time by its reconstruction from the activations
of all of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from actstore.model.checkpoint_files import confirm_code
from actstore.model.load_model import load_model, place
from actstore.model.loaded_weights import check_whole
from actstore.model.value_layouts import arranged, layout_of
from actstore.store.store import Store
from schemas.records import ModelMetrics
from schemas.source import ModelSource
from trainer.errors import RunError
from trainer.evaluate.metrics import recovered
from trainer.evaluate.patched_subject import Subject
from trainer.runs.patched_model import Hook
from trainer.runs.trained_sae import TrainedSae

Patch = Callable[[Tensor], Tensor]
BATCH = 16


def model_metrics(
    sae: TrainedSae,
    store: Store,
    model: str | None = None,
    n_sequences: int = 64,
    device: str = "cpu",
    tick: Callable[[int, int], None] | None = None,
    subject: Subject | None = None,
) -> tuple[ModelMetrics, ...]:
    """Metrics of every site over the first held-out sequences; `model` overrides the
    store's own.

    subject: what `subject_of` gave for the same SAE, store and model. Raises as that
    does.
    """
    subject = subject or subject_of(sae, store, model, device)
    tokens = torch.from_numpy(held_out_tokens(store, n_sequences)).to(device)
    kept = special_mask(tokens, store)
    out = []
    for i in range(len(sae.sites)):
        out.append(_site(sae, store, subject, i, tokens, kept))
        if tick is not None:
            tick(i + 1, len(sae.sites))
    return tuple(out)


def subject_of(
    sae: TrainedSae,
    store: Store,
    model: str | None = None,
    device: str = "cpu",
    *,
    trust_remote_code: bool = False,
) -> Subject:
    """The language model that a store was harvested from; `model` says where it is now.

    trust_remote_code: run code that comes with the model; a store that says so has it
    asked again.

    Raises RunError where the model's weights are not those that were harvested, or are
    not known, and where cross-entropy of the next token is not defined for the model;
    ModelError where it cannot be loaded as a whole.
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
            f"{place(source.name)}: its weights are not those that {store.url} was"
            " harvested from; say where the model lies with --model"
        )
    check_whole(loaded)
    return Subject(loaded, [*sae.sites, *(sae.record.targets or ())])


def held_out_tokens(store: Store, n_sequences: int) -> np.ndarray:
    """The first held-out sequences, int64 [n, context]; -1 is padding."""
    size, last = store.layout.unit_sequences, store.manifest.n_sequences
    units = store.units("held_out") or store.units()
    sequences = [
        s for unit in units for s in range(unit * size, min((unit + 1) * size, last))
    ]
    return store.tokens(np.array(sequences[:n_sequences])).astype(np.int64)


def special_mask(tokens: Tensor, store: Store) -> Tensor:
    """Positions that keep their original activations: special tokens and padding."""
    special = torch.tensor(
        store.manifest.model.special_tokens or [-1], device=tokens.device
    )
    return (tokens < 0) | torch.isin(tokens, special)


@torch.no_grad()
def _site(
    sae: TrainedSae,
    store: Store,
    subject: Subject,
    i: int,
    tokens: Tensor,
    kept: Tensor,
) -> ModelMetrics:
    """Of site i; of a transcoder, of pair i."""
    site = sae.record.targets[i] if sae.record.targets else sae.sites[i]
    mean = torch.from_numpy(store.mean(site)).to(tokens.device, torch.float32)
    sources = sae.sites if sae.of_all_sites else sae.sites[i : i + 1]
    sums, kl, n = dict.fromkeys(("clean", "sae", "zero", "mean"), 0.0), 0.0, 0
    for rows, mask in zip(tokens.split(BATCH), kept.split(BATCH), strict=True):
        valid = ~mask[:, :-1] & (rows[:, 1:] >= 0)
        ids, there = (
            rows.clamp_min(0),
            (None if bool((rows >= 0).all()) else (rows >= 0).long()),
        )
        seen: dict[str, Tensor] = {}
        clean = _log_probabilities(
            subject,
            ids,
            there,
            [(name, _keep(seen, name, ids.shape)) for name in sources],
        )
        sums["clean"] += _cross_entropy(clean, ids, valid)
        n += int(valid.sum())
        patches: dict[str, Patch] = {
            "sae": partial(_stand_in, sae, i, seen),
            "zero": torch.zeros_like,
            "mean": lambda x: mean.to(x.dtype).expand_as(x),
        }
        for name, patch in patches.items():
            patched = _log_probabilities(
                subject, ids, there, [(site, _replace(patch, mask))]
            )
            sums[name] += _cross_entropy(patched, ids, valid)
            if name == "sae":
                kl += float(
                    ((clean.exp() * (clean - patched)).sum(-1)[:, :-1] * valid).sum(
                        dtype=torch.float64
                    )
                )
    ce = {name: total / n if n else math.nan for name, total in sums.items()}
    return ModelMetrics(
        site=sae.sites[i],
        tokens=n,
        ce_clean=ce["clean"],
        ce_sae=ce["sae"],
        ce_zero=ce["zero"],
        ce_mean=ce["mean"],
        recovered_zero=recovered(ce["zero"], ce["sae"], ce["clean"]),
        recovered_mean=recovered(ce["mean"], ce["sae"], ce["clean"]),
        kl=kl / n if n else math.nan,
    )


def _stand_in(sae: TrainedSae, i: int, seen: dict[str, Tensor], x: Tensor) -> Tensor:
    """What the SAE makes of untouched activations [B, context, d] for its site (or
    target) i, whose own are x.
    """
    if sae.of_all_sites:
        return sae.reconstruct(torch.stack([seen[name] for name in sae.sites], dim=-2))[
            ..., i, :
        ].to(x.dtype)
    return sae.reconstruct(seen[sae.sites[i]], i).to(x.dtype)


def _keep(into: dict[str, Tensor], name: str, shape: torch.Size) -> Hook:
    """A hook that keeps a site's activations, [B, context, d]."""

    def hook(value: Tensor, hook: Any = None) -> Tensor:  # noqa: ARG001 (TransformerLens calls it by name)
        into[name] = _vectors(value, shape)
        return value

    return hook


def _replace(patch: Patch, kept: Tensor) -> Hook:
    """A hook that patches a site outside `kept`."""

    def hook(value: Tensor, hook: Any = None) -> Tensor:  # noqa: ARG001
        flat = _vectors(value, kept.shape)
        return torch.where(kept[..., None], flat, patch(flat).to(flat.dtype)).reshape(
            value.shape
        )

    return hook


def _vectors(value: Tensor, shape: torch.Size) -> Tensor:
    """[B, context, d], of values that lie so or as a row per token."""
    layout = layout_of(value, shape)
    flat = arranged(value, layout, shape) if layout in {"sequences", "rows"} else None
    if flat is None:
        raise RunError(
            f"a site has values of shape {list(value.shape)} for tokens of shape"
            f" {list(shape)}: no CE of it"
        )
    return flat


def _log_probabilities(
    subject: Subject,
    ids: Tensor,
    mask: Tensor | None,
    hooks: Sequence[tuple[str, Hook]],
) -> Tensor:
    """log p(next token), float32 [B, context, vocabulary]."""
    return subject.logits(ids, mask, hooks).float().log_softmax(dim=-1)


def _cross_entropy(log_p: Tensor, ids: Tensor, valid: Tensor) -> float:
    chosen = log_p[:, :-1].gather(-1, ids[:, 1:, None])[..., 0]
    return float(-(chosen * valid).sum(dtype=torch.float64))
