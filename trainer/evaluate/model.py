"""What an SAE does to the language model: cross-entropy and KL with one site replaced by its reconstruction.

Per site and token, in nats: CE untouched, with the reconstruction, with zeros, with the site's stored mean; recovered
= (CE_ablated - CE_sae) / (CE_ablated - CE_clean); KL(clean || patched) of the next-token distributions. Special
tokens and padding keep their original activations and are not predicted from.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from actstore.harvesting.models import LoadedModel, load_model
from actstore.store import Store
from schemas.records import ModelMetrics
from schemas.sae import Crosscoder, Transcoder
from schemas.source import ModelSource
from trainer.errors import RunError, SaeError
from trainer.evaluate.metrics import recovered
from trainer.trained import TrainedSae

Patch = Callable[[Tensor], Tensor]
BATCH = 16


def model_metrics(
    sae: TrainedSae,
    store: Store,
    model: str | None = None,
    n_sequences: int = 64,
    device: str = "cpu",
    tick: Callable[[int, int], None] | None = None,
) -> tuple[ModelMetrics, ...]:
    """Metrics of every site over the first held-out sequences; `model` overrides the store's own.

    Raises RunError where the model's weights are not those that were harvested, SaeError for transcoders and
    crosscoders.
    """
    if isinstance(sae.spec, Transcoder | Crosscoder):
        raise SaeError(f"a {sae.spec.kind} is no stand-in for one site, so its effect on the model is not measured")
    source = store.manifest.spec.model
    loaded = load_model(source if model is None else ModelSource(name=model, dtype=source.dtype), device)
    if loaded.info.weights_digest != store.manifest.model.weights_digest:
        raise RunError(f"{model or source.name}: its weights are not those that {store.url} was harvested from")
    bridge = bridge_of(loaded)
    tokens = torch.from_numpy(held_out_tokens(store, n_sequences)).to(device)
    kept = special_mask(tokens, store)
    out = []
    for i, site in enumerate(sae.sites):
        out.append(_site(sae, store, bridge, site, tokens, kept))
        if tick is not None:
            tick(i + 1, len(sae.sites))
    return tuple(out)


def bridge_of(loaded: LoadedModel) -> Any:
    """A TransformerBridge over the loaded module (unprocessed weights, eager attention as TransformerLens needs it)."""
    from transformer_lens.model_bridge.sources import build_bridge_from_module

    module: Any = loaded.module
    module.set_attn_implementation("eager")
    return build_bridge_from_module(module, type(module).__name__, hf_config=module.config)


def held_out_tokens(store: Store, n_sequences: int) -> np.ndarray:
    """The first held-out sequences, int64 [n, context]; -1 is padding."""
    size, last = store.layout.unit_sequences, store.manifest.n_sequences
    units = store.units("held_out") or store.units()
    sequences = [s for unit in units for s in range(unit * size, min((unit + 1) * size, last))]
    return store.tokens(np.array(sequences[:n_sequences])).astype(np.int64)


def special_mask(tokens: Tensor, store: Store) -> Tensor:
    """Positions that keep their original activations: special tokens and padding."""
    special = torch.tensor(store.manifest.model.special_tokens or [-1], device=tokens.device)
    return (tokens < 0) | torch.isin(tokens, special)


@torch.no_grad()
def _site(sae: TrainedSae, store: Store, bridge: Any, site: str, tokens: Tensor, kept: Tensor) -> ModelMetrics:
    mean = torch.from_numpy(store.mean(site)).to(tokens.device, torch.float32)
    patches: dict[str, Patch] = {
        "sae": lambda x: sae.reconstruct(x, site),
        "zero": torch.zeros_like,
        "mean": lambda x: mean.to(x.dtype).expand_as(x),
    }
    sums, kl, n = dict.fromkeys(("clean", *patches), 0.0), 0.0, 0
    for rows, mask in zip(tokens.split(BATCH), kept.split(BATCH), strict=True):
        valid = ~mask[:, :-1] & (rows[:, 1:] >= 0)
        ids = rows.clamp_min(0)
        clean = _log_probabilities(bridge, ids)
        sums["clean"] += _cross_entropy(clean, ids, valid)
        n += int(valid.sum())
        for name, patch in patches.items():
            patched = _log_probabilities(bridge, ids, site, patch, mask)
            sums[name] += _cross_entropy(patched, ids, valid)
            if name == "sae":
                kl += float(((clean.exp() * (clean - patched)).sum(-1)[:, :-1] * valid).sum(dtype=torch.float64))
    ce = {name: total / max(n, 1) for name, total in sums.items()}
    return ModelMetrics(
        site=site,
        tokens=n,
        ce_clean=ce["clean"],
        ce_sae=ce["sae"],
        ce_zero=ce["zero"],
        ce_mean=ce["mean"],
        recovered_zero=recovered(ce["zero"], ce["sae"], ce["clean"]),
        recovered_mean=recovered(ce["mean"], ce["sae"], ce["clean"]),
        kl=kl / max(n, 1),
    )


def _log_probabilities(
    bridge: Any, ids: Tensor, site: str | None = None, patch: Patch | None = None, kept: Tensor | None = None
) -> Tensor:
    """log p(next token), float32 [B, context, vocabulary], with a site patched outside `kept`."""

    def hook(value: Tensor, hook: Any = None) -> Tensor:  # noqa: ARG001 (TransformerLens calls it by name)
        assert patch is not None
        assert kept is not None
        flat = value.reshape(*kept.shape, -1)
        return torch.where(kept[..., None], flat, patch(flat).to(flat.dtype)).reshape(value.shape)

    hooks = [] if site is None else [(site, hook)]
    logits: Tensor = bridge.run_with_hooks(ids, return_type="logits", fwd_hooks=hooks, prepend_bos=False)
    return logits.float().log_softmax(dim=-1)


def _cross_entropy(log_p: Tensor, ids: Tensor, valid: Tensor) -> float:
    chosen = log_p[:, :-1].gather(-1, ids[:, 1:, None])[..., 0]
    return float(-(chosen * valid).sum(dtype=torch.float64))
