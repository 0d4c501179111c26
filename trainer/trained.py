"""A trained SAE, for use: encode and decode in original activation units, fold a layer, patch a model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from safetensors.torch import load as load_tensors
from torch import Tensor

from actstore.errors import ObjectError
from actstore.format.storage import Storage
from schemas.records import RunRecord
from trainer.errors import RunError, SaeError
from trainer.saes.build import Sae, build

Layer = str | int | Tensor


class FoldedSae(NamedTuple):
    """One layer's SAE acting on original units: f = act((x - b_dec) W_enc + b_enc), x' = f W_dec + b_dec.

    W_enc [d, m], b_enc [m], W_dec [m, d], b_dec [d]; `act` is the architecture's activation function on [B, m].
    """

    W_enc: Tensor
    b_enc: Tensor
    W_dec: Tensor
    b_dec: Tensor
    kind: str
    act: Callable[[Tensor], Tensor]

    def encode(self, x: Tensor) -> Tensor:
        return self.act((x - self.b_dec) @ self.W_enc + self.b_enc)

    def decode(self, latents: Tensor) -> Tensor:
        return latents @ self.W_dec + self.b_dec


class TrainedSae:
    """An SAE with its layers' rescaling: x' = (x - mean_l) * scale_l before it, and back behind it.

    `layer` is a site name, its index in `sites`, or an int64 tensor [B] of such indices (one per row).
    """

    def __init__(self, record: RunRecord, sae: Sae, scale: Tensor, mean: Tensor | None, url: str = "") -> None:
        self.record, self.sae, self.url = record, sae.eval().requires_grad_(False), url
        self.sites: tuple[str, ...] = record.sites
        self.scale, self.mean = scale, mean
        self.spec = record.sae
        self.d, self.n_latents = record.d, record.n_latents

    def __repr__(self) -> str:
        return f"TrainedSae({self.spec.kind}, d {self.d}, {self.n_latents} latents, {len(self.sites)} sites)"

    @property
    def decoder(self) -> Tensor:
        """Decoder directions [m, d], in the units the SAE was trained in."""
        return self.sae.W_dec

    @property
    def device(self) -> torch.device:
        return self.sae.W_dec.device

    def to(self, device: str | torch.device) -> TrainedSae:
        """Move to a device, in place."""
        self.sae.to(device)
        self.scale = self.scale.to(device)
        self.mean = None if self.mean is None else self.mean.to(device)
        return self

    def encode(self, x: Tensor, layer: Layer) -> Tensor:
        """Latents [..., m] of activations [..., d] in original units."""
        flat = x.reshape(-1, self.d).float()
        return self.sae.encode(self._scaled(flat, self._index(layer))).reshape(*x.shape[:-1], self.n_latents)

    def decode(self, latents: Tensor, layer: Layer) -> Tensor:
        """Reconstruction [..., d] in original units of latents [..., m]."""
        flat = latents.reshape(-1, self.n_latents)
        at = self._index(layer)
        out = self.sae.decode(flat) / self._scale_of(at)
        if self.mean is not None:
            out = out + self.mean[at]
        return out.reshape(*latents.shape[:-1], self.d)

    def reconstruct(self, x: Tensor, layer: Layer) -> Tensor:
        """decode(encode(x)) in x's dtype."""
        return self.decode(self.encode(x, layer), layer).to(x.dtype)

    def fold(self, layer: str | int) -> FoldedSae:
        """The SAE of one layer with the rescaling folded into the weights (saelens-format: Folding).

        W_enc *= s; W_dec /= s; b_dec = b_dec / s + mean; b_enc as it is, since b_dec is subtracted from the input.
        """
        at = self._index(layer)
        assert isinstance(at, int)
        s = self.scale[at]
        b_dec = self.sae.b_dec / s + (0 if self.mean is None else self.mean[at])
        return FoldedSae(self.sae.encoder * s, self.sae.b_enc, self.sae.W_dec / s, b_dec, self.spec.kind, self._act)

    @contextmanager
    def attach(self, model: Any, sites: Sequence[str] | None = None) -> Iterator[Any]:
        """Inside the `with`, the model's forward sees reconstructions at the sites instead of the activations.

        `model`: a TransformerLens TransformerBridge or HookedTransformer. Raises SaeError for any other.
        """
        if not hasattr(model, "hooks") or not hasattr(model, "hook_dict"):
            raise SaeError(f"attach wants a TransformerLens model (TransformerBridge), got {type(model).__name__}")

        def patch(name: str) -> Callable[..., Tensor]:
            def hook(value: Tensor, hook: Any = None) -> Tensor:  # noqa: ARG001 (TransformerLens calls it by name)
                flat = value.reshape(*value.shape[: value.ndim - self._own_dims(value)], self.d)
                return self.reconstruct(flat, name).reshape(value.shape)

            return hook

        with model.hooks(fwd_hooks=[(name, patch(name)) for name in sites or self.sites]):
            yield model

    def _own_dims(self, value: Tensor) -> int:
        """Trailing dimensions that make up one vector: 1, or 2 where heads are separate."""
        return 1 if value.shape[-1] == self.d else 2

    def _act(self, pre: Tensor) -> Tensor:
        if self.spec.kind == "topk":
            values, indices = pre.topk(self.spec.k, dim=-1)
            return torch.zeros_like(pre).scatter(-1, indices, values.relu())
        return pre.relu()

    def _index(self, layer: Layer) -> int | Tensor:
        if isinstance(layer, str):
            if layer not in self.sites:
                raise SaeError(f"this SAE was not trained on {layer!r}; its sites are {', '.join(self.sites)}")
            return self.sites.index(layer)
        if isinstance(layer, int) and not 0 <= layer < len(self.sites):
            raise SaeError(f"layer {layer}: this SAE has {len(self.sites)} sites")
        return layer

    def _scale_of(self, at: int | Tensor) -> Tensor:
        return self.scale[at] if isinstance(at, int) else self.scale[at][:, None]

    def _scaled(self, x: Tensor, at: int | Tensor) -> Tensor:
        return (x if self.mean is None else x - self.mean[at]) * self._scale_of(at)


def load(run: str, options: dict[str, Any] | None = None, device: str | torch.device = "cpu") -> TrainedSae:
    """The trained SAE of a run folder (any fsspec URL). Raises RunError where there is none."""
    storage = Storage(run, options)
    try:
        record = RunRecord.model_validate_json(storage.read("sae.json"))
        tensors = load_tensors(storage.read("sae.safetensors"))
    except ObjectError:
        what = (
            "this run has not ended; `trainer train --resume` goes on" if storage.exists("spec.json") else "not a run"
        )
        raise RunError(f"{run}: wanted a trained SAE (sae.json, sae.safetensors), but {what}") from None
    sae = build(record.sae, record.d)
    scale, mean = tensors.pop("scale"), tensors.pop("mean", None)
    sae.load_state_dict(tensors)
    return TrainedSae(record, sae, scale, mean, run).to(device)
