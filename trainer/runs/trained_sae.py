"""A trained SAE, for use: encode and decode in original activation units, fold a layer,
patch a model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from actstore.console.notebook import table
from actstore.errors import CorruptError, ObjectError
from actstore.format.storage import Storage
from schemas.records import RunRecord
from trainer.errors import RunError, SaeError
from trainer.kernels.devices import usable
from trainer.runs.run_files import read_json
from trainer.runs.run_tensors import built, check_shapes, most_bytes, read_tensors
from trainer.saes.build import Sae
from trainer.saes.crosscoder import CrosscoderSae
from trainer.saes.ops import of_layer
from trainer.saes.transcoder import TranscoderSae

Layer = str | int | Tensor


class FoldedSae(NamedTuple):
    """One layer's SAE acting on original units: f = act((x - b_dec) W_enc + b_enc), x'
    = f W_dec + b_dec.

    W_enc [d, m], b_enc [m], W_dec [m, d], b_dec [d]; `act` is the architecture's
    activation function on [B, m], with its thresholds, magnitudes or, behind a hidden
    layer, all that follows it (W_enc, b_enc and `act` are then of h).
    """

    W_enc: Tensor
    b_enc: Tensor
    W_dec: Tensor
    b_dec: Tensor
    kind: str
    act: Callable[[Tensor], Tensor]

    def encode(self, x: Tensor) -> Tensor:
        """Latents [..., m] of activations [..., d]."""
        _check_shape("encode", "activations", x, (self.W_enc.shape[0],))
        return self.act((x - self.b_dec) @ self.W_enc + self.b_enc)

    def decode(self, latents: Tensor) -> Tensor:
        """Reconstruction [..., d] of latents [..., m]."""
        _check_shape("decode", "latents", latents, (self.W_dec.shape[0],))
        return latents @ self.W_dec + self.b_dec


class TrainedSae:
    """An SAE with its layers' rescaling: x' = (x - mean_l) * scale_l before it, and
    back behind it.

    `layer` is a site name, its index in `sites`, or an int64 tensor [B] of such indices
    (one per row). A crosscoder takes no layer: its rows are [..., n_sites, d]. A
    transcoder's layer is a pair of sites, named by its input, and its outputs are
    rescaled by `out`, the scale and mean of the targets.
    """

    def __init__(
        self,
        record: RunRecord,
        sae: Sae,
        scale: Tensor,
        mean: Tensor | None,
        url: str = "",
        out: tuple[Tensor, Tensor | None] | None = None,
    ) -> None:
        self.record, self.sae, self.url = record, sae.eval().requires_grad_(False), url
        self.sites: tuple[str, ...] = record.sites
        self.scale, self.mean = scale, mean
        self.scale_out, self.mean_out = (scale, mean) if out is None else out
        self.spec = record.sae
        self.d, self.n_latents = record.d, record.n_latents

    def __repr__(self) -> str:
        return (
            f"TrainedSae({self.url!r}:"
            f" {', '.join(f'{name} {value}' for name, value in self._described())})"
        )

    def _repr_html_(self) -> str:
        return table(f"Trained SAE {self.record.name or self.url}", self._described())

    def _described(self) -> list[tuple[str, str]]:
        record, names = self.record, self.sites
        sites = ", ".join(names) if len(names) <= 3 else f"{names[0]}, ..., {names[-1]}"
        inner = getattr(self.spec, "inner", None)
        return [
            (
                "kind",
                (
                    self.spec.kind
                    if inner is None
                    else f"{self.spec.kind} of {inner.kind}"
                ),
            ),
            ("latents", f"{self.n_latents:,}"),
            (
                "d",
                f"{self.d}" if record.d_out is None else f"{self.d} to {record.d_out}",
            ),
            ("sites", f"{len(names)} ({sites})"),
            ("rescale", f"{record.rescale}{', centred' if record.center else ''}"),
            ("trained on", f"{record.rows:,} rows of {record.store or 'no store'}"),
            ("device", f"{self.device}"),
        ]

    @property
    def decoder(self) -> Tensor:
        """Decoder directions [m, d], in the units the SAE was trained in."""
        return self.sae.W_dec

    @property
    def of_all_sites(self) -> bool:
        """Whether a row holds the activations of all sites, as a crosscoder's does."""
        return isinstance(self.sae, CrosscoderSae)

    @property
    def device(self) -> torch.device:
        return self.sae.W_dec.device

    def to(self, device: str | torch.device) -> TrainedSae:
        """Move to a device, in place. Raises KernelError where there is none of that
        name.
        """
        device = usable(device)
        self.sae.to(device)
        self.scale = self.scale.to(device)
        self.mean = None if self.mean is None else self.mean.to(device)
        self.scale_out = self.scale_out.to(device)
        self.mean_out = None if self.mean_out is None else self.mean_out.to(device)
        return self

    def encode(self, x: Tensor, layer: Layer | None = None) -> Tensor:
        """Latents [..., m] of activations [..., d] in original units. Raises SaeError
        for other shapes.
        """
        self._check_input(x, layer)
        if isinstance(self.sae, CrosscoderSae):
            return self.sae.encode(self.scaled(x.reshape(-1, *x.shape[-2:]))).reshape(
                *x.shape[:-2], self.n_latents
            )
        at, flat = self._index(layer), x.reshape(-1, self.d)
        return self.sae.encode(self.scaled(flat, at), at).reshape(
            *x.shape[:-1], self.n_latents
        )

    def scaled(self, x: Tensor, at: int | Tensor | None = None) -> Tensor:
        """Rows [B, d] in original units as the architecture sees them; at: as `layer`,
        by index. A crosscoder's rows are [B, n_sites, d].
        """
        wide = x.float()
        if at is None:
            return (wide if self.mean is None else wide - self.mean) * self.scale[
                :, None
            ]
        return (wide if self.mean is None else wide - self.mean[at]) * self._scale_of(
            at
        )

    def decode(self, latents: Tensor, layer: Layer | None = None) -> Tensor:
        """Reconstruction [..., d] in original units of latents [..., m]. Raises
        SaeError for other shapes.
        """
        _check_shape("decode", "latents", latents, (self.n_latents,))
        self._check_layer(layer, latents.shape[:-1].numel())
        flat = latents.reshape(-1, self.n_latents)
        if isinstance(self.sae, CrosscoderSae):
            out = self.sae.decode(flat) / self.scale[:, None]
            return (out if self.mean is None else out + self.mean).reshape(
                *latents.shape[:-1], *out.shape[1:]
            )
        at = self._index(layer)
        return self._unscaled(self.sae.decode(flat, at), at).reshape(
            *latents.shape[:-1], -1
        )

    def reconstruct(self, x: Tensor, layer: Layer | None = None) -> Tensor:
        """decode(encode(x)) in x's dtype; of a transcoder the output [..., d_out], its
        skip connection included.
        """
        self._check_input(x, layer)
        if isinstance(self.sae, TranscoderSae):
            at, flat = self._index(layer), x.reshape(-1, self.d)
            out = self._unscaled(self.sae.predict(self.scaled(flat, at), at), at)
            return out.reshape(*x.shape[:-1], -1).to(x.dtype)
        return self.decode(self.encode(x, layer), layer).to(x.dtype)

    def fold(self, layer: str | int) -> FoldedSae:
        """The SAE of one layer with the rescaling folded into the weights
        (saelens-format: Folding).

        W_enc *= s; W_dec /= s; b_dec = b_dec / s + mean; b_enc as it is, since b_dec is
        subtracted from the input. Raises SaeError for an architecture that is not one
        SAE per layer.
        """
        if isinstance(self.sae, CrosscoderSae | TranscoderSae):
            raise SaeError(
                f"a {self.spec.kind} is no SAE of one layer, so there is nothing to"
                " fold"
            )
        at = self._index(layer)
        assert isinstance(at, int)
        s, sae = self.scale[at], self.sae
        b_dec = of_layer(sae.b_dec, at) / s + (
            0 if self.mean is None else self.mean[at]
        )
        act = partial(sae.activate, layer=at)
        return FoldedSae(
            sae.encoder * s, sae.encoder_bias, sae.W_dec / s, b_dec, self.spec.kind, act
        )

    @contextmanager
    def attach(self, model: Any, sites: Sequence[str] | None = None) -> Iterator[Any]:
        """Inside the `with`, the model's forward sees reconstructions at the sites
        instead of the activations.

        `model`: a TransformerLens TransformerBridge or HookedTransformer, or where the
        sites are names of modules, the model itself. Raises SaeError for any other.
        """
        if isinstance(self.sae, CrosscoderSae):
            raise SaeError(
                "a crosscoder needs all its sites at once, so it cannot replace them"
                " one by one"
            )
        if isinstance(self.sae, TranscoderSae):
            raise SaeError(
                "a transcoder's output is of another site than its input, so it cannot"
                " replace a site"
            )
        from trainer.runs.patched_model import patched

        names = tuple(sites or self.sites)
        bridged = hasattr(model, "hooks") and hasattr(model, "hook_dict")
        modules = dict(model.named_modules()) if isinstance(model, nn.Module) else {}
        if not bridged and not all(name in modules for name in names):
            raise SaeError(
                "attach wants a TransformerLens model (TransformerBridge), or the"
                f" model that has modules of these names: {', '.join(names[:3])}; got"
                f" {type(model).__name__}"
            )

        def patch(name: str) -> Callable[..., Tensor]:
            def hook(value: Tensor, hook: Any = None) -> Tensor:  # noqa: ARG001 (TransformerLens calls it by name)
                flat = value.reshape(
                    *value.shape[: value.ndim - self._own_dims(value)], self.d
                )
                return self.reconstruct(flat, name).reshape(value.shape)

            return hook

        hooks = [(name, patch(name)) for name in names]
        with model.hooks(fwd_hooks=hooks) if bridged else patched(model, hooks):
            yield model

    def _check_input(self, x: Tensor, layer: Layer | None) -> None:
        shape = (len(self.sites), self.d) if self.of_all_sites else (self.d,)
        _check_shape(
            "encode",
            "activations of all sites" if self.of_all_sites else "activations",
            x,
            shape,
        )
        self._check_layer(layer, x.shape[: -len(shape)].numel())

    def _check_layer(self, layer: Layer | None, rows: int) -> None:
        """Whether the layer is there, and of a tensor, whether it has an index for each
        row.
        """
        if self.of_all_sites:
            if layer is not None:
                raise SaeError("a crosscoder takes no layer: its rows hold all sites")
            return
        if not isinstance(layer, Tensor):
            return
        if layer.dtype != torch.int64 or layer.ndim != 1 or len(layer) != rows:
            raise SaeError(
                f"layer: wanted a site, its index, or int64 indices of sites [{rows}],"
                f" one for each row; got {str(layer.dtype).removeprefix('torch.')}"
                f" {list(layer.shape)}"
            )
        low, high = (int(layer.min()), int(layer.max())) if rows else (0, 0)
        if low < 0 or high >= len(self.sites):
            raise SaeError(
                f"layer: its indices are {low} to {high}; this SAE has"
                f" {len(self.sites)} sites"
            )

    def _own_dims(self, value: Tensor) -> int:
        """Trailing dimensions that make up one vector: 1, or 2 where heads are
        separate.
        """
        return 1 if value.shape[-1] == self.d else 2

    def _index(self, layer: Layer | None) -> int | Tensor:
        if layer is None:
            raise SaeError(f"which layer? this SAE's sites are {', '.join(self.sites)}")
        if isinstance(layer, str):
            if layer not in self.sites:
                raise SaeError(
                    f"this SAE was not trained on {layer!r}; its sites are"
                    f" {', '.join(self.sites)}"
                )
            return self.sites.index(layer)
        if isinstance(layer, int) and not 0 <= layer < len(self.sites):
            raise SaeError(f"layer {layer}: this SAE has {len(self.sites)} sites")
        return layer

    def _scale_of(self, at: int | Tensor) -> Tensor:
        return self.scale[at] if isinstance(at, int) else self.scale[at][:, None]

    def _unscaled(self, out: Tensor, at: int | Tensor) -> Tensor:
        wide = out / (
            self.scale_out[at] if isinstance(at, int) else self.scale_out[at][:, None]
        )
        return wide if self.mean_out is None else wide + self.mean_out[at]


def _check_shape(call: str, what: str, x: Any, last: tuple[int, ...]) -> None:
    """Raises SaeError where x is no tensor whose last dimensions are these."""
    wanted = f"{call}: wanted {what}, a tensor [..., {', '.join(map(str, last))}]"
    if not isinstance(x, Tensor):
        raise SaeError(
            f"{wanted}; got {type(x).__name__}; torch.from_numpy(x) makes one of an"
            " array"
        )
    if tuple(x.shape[-len(last) :]) != last:
        raise SaeError(f"{wanted}; got {list(x.shape)}")


def load(
    run: str, options: dict[str, Any] | None = None, device: str | torch.device = "cpu"
) -> TrainedSae:
    """The trained SAE of a run folder (any fsspec URL). Raises RunError where there is
    none, or weights that do not fit their record.
    """
    storage = Storage(run, options)
    try:
        record = read_json(storage, "sae.json", RunRecord)
        limit = most_bytes(record, f"{run}/sae.json")
        tensors = read_tensors(storage, "sae.safetensors", ("scale",), limit)
    except CorruptError:
        raise
    except ObjectError:
        what = (
            "this run has not ended; `trainer train --resume` goes on"
            if storage.exists("spec.json")
            else "there is none; check the path"
        )
        raise RunError(
            f"{run}: wanted a trained SAE (sae.json, sae.safetensors), but {what}"
        ) from None
    scale, mean = tensors.pop("scale"), tensors.pop("mean", None)
    scale_out, mean_out = tensors.pop("scale_out", None), tensors.pop("mean_out", None)
    where, n = f"{run}/sae.safetensors", len(record.sites)
    check_shapes({"scale": scale, "scale_out": scale_out}, (n,), where)
    check_shapes({"mean": mean}, (n, record.d), where)
    check_shapes(
        {"mean_out": mean_out},
        (n, record.d if record.d_out is None else record.d_out),
        where,
    )
    sae = built(record, tensors, where)
    out = None if scale_out is None else (scale_out, mean_out)
    return TrainedSae(record, sae, scale, mean, run, out).to(device)
