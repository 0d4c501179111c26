"""A trained SAE, for use.

It encodes and decodes activations in their original units, folds the rescaling of a
site into its weights, and replaces sites of a model by what it makes of them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from actstore import arguments
from actstore.arguments import checked, optional
from actstore.catalog.name_hint import name_hint
from actstore.console.notebook import table
from actstore.errors import CorruptError, ObjectError
from actstore.format.storage import Storage
from schemas.records import RunRecord
from trainer.errors import RunError, SaeError
from trainer.kernels.devices import usable
from trainer.runs.run_arguments import run_folder
from trainer.runs.run_files import read_json
from trainer.runs.run_tensors import (
    check_shapes,
    most_bytes,
    read_tensors,
    sae_with_weights,
)
from trainer.saes.build import Sae, kind_of
from trainer.saes.scaled_rows import of_layer

Layer = str | int | Tensor
_MOST_SITES_SHOWN = 3


class FoldedSae(NamedTuple):
    """The SAE of one site, which takes and gives activations in their original units.

    latents = act((x - b_dec) @ W_enc + b_enc) and x' = latents @ W_dec + b_dec. Where
    the encoder has a hidden layer, W_enc and b_enc are those of that layer, and `act`
    is all that comes after it.

    Attributes:
        W_enc: float32 [d, m].
        b_enc: float32 [m].
        W_dec: float32 [m, d].
        b_dec: float32 [d].
        kind: The kind of SAE.
        act: The activation function on [B, m], with thresholds and magnitudes.
    """

    W_enc: Tensor
    b_enc: Tensor
    W_dec: Tensor
    b_dec: Tensor
    kind: str
    act: Callable[[Tensor], Tensor]

    def encode(self, x: Tensor) -> Tensor:
        """Return the latents [..., m] of activations [..., d]."""
        _check_shape("encode", "activations", x, (self.W_enc.shape[0],))
        return self.act((x - self.b_dec) @ self.W_enc + self.b_enc)

    def decode(self, latents: Tensor) -> Tensor:
        """Return the reconstruction [..., d] of latents [..., m]."""
        _check_shape("decode", "latents", latents, (self.W_dec.shape[0],))
        return latents @ self.W_dec + self.b_dec


class TrainedSae:
    """An SAE together with the rescaling of its sites.

    A row x of site l is seen by the SAE as (x - mean[l]) * scale[l]; what the SAE
    reconstructs is brought back in the same way.

    Methods take a `layer`: the name of a site, its index in `sites`, or an int64 tensor
    [B] with an index for each row. A crosscoder takes no layer, since its rows
    [..., n_sites, d] hold all sites. The layer of a transcoder is a pair of sites,
    named by its input; its outputs are those of the pair's target.

    Attributes:
        record: What was trained, and on what.
        spec: The spec of the SAE.
        sae: The SAE itself, which sees rescaled rows.
        url: The run's folder.
        sites: The sites, in the order of `layer`.
        d: Width of an activation.
        n_latents: Size of the dictionary, m.
        scale: The factor of each site's rows, float32 [n_sites].
        mean: What is subtracted from them before, float32 [n_sites, d], or None.
        scale_out: As `scale`, for what is reconstructed.
        mean_out: As `mean`, for what is reconstructed, [n_sites, d_out] or None.
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
        """Put an SAE and its rescaling together.

        Args:
            record: The run's record.
            sae: The SAE with its weights.
            scale: Factors of the inputs, [n_sites].
            mean: Means of the inputs, [n_sites, d], or None.
            url: The run's folder.
            out: Scale and mean of the targets of a transcoder; None for other kinds.
        """
        self.record = record
        self.spec = record.sae
        self.sae = sae.eval().requires_grad_(False)
        self.url = url
        self.sites: tuple[str, ...] = record.sites
        self.d = record.d
        self.n_latents = record.n_latents
        self.scale = scale
        self.mean = mean
        self.scale_out, self.mean_out = (scale, mean) if out is None else out
        self._kind = kind_of(record.sae)

    def __repr__(self) -> str:
        described = ", ".join(f"{name} {value}" for name, value in self._described())
        return f"TrainedSae({self.url!r}: {described})"

    def _repr_html_(self) -> str:
        return table(f"Trained SAE {self.record.name or self.url}", self._described())

    def _described(self) -> list[tuple[str, str]]:
        record = self.record
        kind: str = self.spec.kind
        inner = getattr(self.spec, "inner", None)
        if inner is not None:
            kind = f"{kind} of {inner.kind}"
        width = f"{self.d}"
        if record.d_out is not None:
            width = f"{self.d} to {record.d_out}"
        sites = ", ".join(self.sites)
        if len(self.sites) > _MOST_SITES_SHOWN:
            sites = f"{self.sites[0]}, ..., {self.sites[-1]}"
        centred = ", centred" if record.center else ""
        return [
            ("kind", kind),
            ("latents", f"{self.n_latents:,}"),
            ("d", width),
            ("sites", f"{len(self.sites)} ({sites})"),
            ("rescale", f"{record.rescale}{centred}"),
            ("trained on", f"{record.rows:,} rows of {record.store or 'no store'}"),
            ("device", f"{self.device}"),
        ]

    @property
    def decoder(self) -> Tensor:
        """The decoder directions in the units of training, [m, d].

        A crosscoder has one for each site: [m, n_sites, d].
        """
        return self.sae.W_dec

    @property
    def of_all_sites(self) -> bool:
        """True if a row holds the activations of all sites, as a crosscoder's does."""
        return self._kind.of_all_sites

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.sae.W_dec.device

    def to(self, device: str | torch.device) -> TrainedSae:
        """Move to a device, in place.

        Raises:
            KernelError: There is no device of that name.
        """
        device = usable(device)
        self.sae.to(device)
        self.scale = self.scale.to(device)
        self.mean = None if self.mean is None else self.mean.to(device)
        self.scale_out = self.scale_out.to(device)
        self.mean_out = None if self.mean_out is None else self.mean_out.to(device)
        return self

    def encode(self, x: Tensor, layer: Layer | None = None) -> Tensor:
        """Return the latents of activations in original units.

        Args:
            x: Activations [..., d]; for a crosscoder [..., n_sites, d].
            layer: Their site or sites; see the class.

        Returns:
            Latents, float32 [..., m].

        Raises:
            SaeError: The shapes do not fit, or the layer is not one of this SAE's.

        Examples:
            >>> import torch, trainer
            >>> sae = trainer.load("runs/topk")
            >>> x = torch.randn(5, sae.d)
            >>> sae.encode(x, "blocks.0.hook_mlp_out").shape
            torch.Size([5, 64])
        """
        self._check_input(x, layer)
        if self.of_all_sites:
            rows = x.reshape(-1, *x.shape[-2:])
            latents = self.sae.encode(self.scaled(rows))
            return latents.reshape(*x.shape[:-2], self.n_latents)
        index = self._index(layer)
        rows = x.reshape(-1, self.d)
        latents = self.sae.encode(self.scaled(rows, index), index)
        return latents.reshape(*x.shape[:-1], self.n_latents)

    def scaled(self, x: Tensor, index: int | Tensor | None = None) -> Tensor:
        """Return rows as the SAE sees them: centred and rescaled.

        Args:
            x: Rows [B, d] in original units; for a crosscoder [B, n_sites, d].
            index: The index of their site, or int64 [B] with one for each row. None for
                a crosscoder.

        Returns:
            Rows of the same shape, float32.
        """
        wide = x.float()
        if index is None:
            centred = wide if self.mean is None else wide - self.mean
            return centred * self.scale[:, None]
        centred = wide if self.mean is None else wide - self.mean[index]
        return centred * _scale_of_rows(self.scale, index)

    def decode(self, latents: Tensor, layer: Layer | None = None) -> Tensor:
        """Return the reconstruction of latents in original units.

        Args:
            latents: [..., m].
            layer: The site or sites to reconstruct; see the class.

        Returns:
            Activations, float32 [..., d]; of a crosscoder [..., n_sites, d]; of a
            transcoder [..., d_out], without what a skip connection would add.

        Raises:
            SaeError: The shapes do not fit, or the layer is not one of this SAE's.
        """
        _check_shape("decode", "latents", latents, (self.n_latents,))
        self._check_layer(layer, latents.shape[:-1].numel())
        flat = latents.reshape(-1, self.n_latents)
        if self.of_all_sites:
            out = self.sae.decode(flat) / self.scale[:, None]
            if self.mean is not None:
                out = out + self.mean
            return out.reshape(*latents.shape[:-1], *out.shape[1:])
        index = self._index(layer)
        out = self._unscaled(self.sae.decode(flat, index), index)
        return out.reshape(*latents.shape[:-1], -1)

    def reconstruct(self, x: Tensor, layer: Layer | None = None) -> Tensor:
        """Return what the SAE makes of activations: `decode(encode(x))` in x's dtype.

        For a transcoder that is its prediction of the target, [..., d_out], with its
        skip connection. Arguments and errors are those of `encode`.
        """
        self._check_input(x, layer)
        if self.of_all_sites:
            return self.decode(self.encode(x)).to(x.dtype)
        index = self._index(layer)
        rows = self.scaled(x.reshape(-1, self.d), index)
        # Not `decode` of `encode`: a skip connection needs the rows themselves.
        out = self._unscaled(self.sae.predict(rows, index), index)
        return out.reshape(*x.shape[:-1], -1).to(x.dtype)

    def fold(self, layer: str | int) -> FoldedSae:
        """Return the SAE of one site with its rescaling folded into the weights.

        With s the site's scale: W_enc is multiplied by s, W_dec divided by s, and b_dec
        becomes b_dec / s + mean. b_enc stays, since the encoder subtracts b_dec from
        its input. With s = 2, mean = 3 and b_dec = 1, for example, the SAE subtracts 1
        from 2 (x - 3), which is 2 (x - 3.5): the new b_dec is 1 / 2 + 3 = 3.5.

        Raises:
            SaeError: The kind is not one SAE for each site.
        """
        if self._kind.of_all_sites or self._kind.to_other_site:
            raise SaeError(
                f"a {self.spec.kind} is no SAE of one layer, so there is nothing to"
                " fold"
            )
        index = self._index(layer)
        assert isinstance(index, int)
        scale = self.scale[index]
        mean = 0 if self.mean is None else self.mean[index]
        return FoldedSae(
            W_enc=self.sae.encoder * scale,
            b_enc=self.sae.encoder_bias,
            W_dec=self.sae.W_dec / scale,
            b_dec=of_layer(self.sae.b_dec, index) / scale + mean,
            kind=self.spec.kind,
            act=partial(self.sae.activate, layer=index),
        )

    @contextmanager
    def attach(self, model: Any, sites: Sequence[str] | None = None) -> Iterator[Any]:
        """Inside the `with`, let a model's forward see reconstructions at the sites.

        Args:
            model: A TransformerLens TransformerBridge or HookedTransformer; where the
                sites are names of modules, the model itself.
            sites: Which sites to replace; None for all of this SAE's.

        Raises:
            SaeError: The model is of another sort, or the kind cannot replace a site.
        """
        if self._kind.not_attachable is not None:
            raise SaeError(self._kind.not_attachable)
        from trainer.runs.module_patching import patched

        names = tuple(sites or self.sites)
        is_bridge = hasattr(model, "hooks") and hasattr(model, "hook_dict")
        modules = dict(model.named_modules()) if isinstance(model, nn.Module) else {}
        if not is_bridge and not all(name in modules for name in names):
            raise SaeError(
                "attach wants a TransformerLens model (TransformerBridge), or the"
                f" model that has modules of these names: {', '.join(names[:3])}; got"
                f" {type(model).__name__}"
            )

        def patch(name: str) -> Callable[..., Tensor]:
            def hook(value: Tensor, hook: Any = None) -> Tensor:  # noqa: ARG001 (TransformerLens calls it by name)
                # Heads that are separate, [..., heads, d_head], make one vector.
                vector_dims = 1 if value.shape[-1] == self.d else 2
                flat = value.reshape(*value.shape[: value.ndim - vector_dims], self.d)
                return self.reconstruct(flat, name).reshape(value.shape)

            return hook

        hooks = [(name, patch(name)) for name in names]
        attached = model.hooks(fwd_hooks=hooks) if is_bridge else patched(model, hooks)
        with attached:
            yield model

    def _check_input(self, x: Tensor, layer: Layer | None) -> None:
        what = "activations"
        row_shape: tuple[int, ...] = (self.d,)
        if self.of_all_sites:
            what = "activations of all sites"
            row_shape = (len(self.sites), self.d)
        _check_shape("encode", what, x, row_shape)
        self._check_layer(layer, x.shape[: -len(row_shape)].numel())

    def _check_layer(self, layer: Layer | None, n_rows: int) -> None:
        """Check that a layer is wanted, and that a tensor has an index for each row."""
        if self.of_all_sites:
            if layer is not None:
                raise SaeError("a crosscoder takes no layer: its rows hold all sites")
            return
        if not isinstance(layer, Tensor):
            return
        if layer.dtype != torch.int64 or layer.ndim != 1 or len(layer) != n_rows:
            dtype = str(layer.dtype).removeprefix("torch.")
            raise SaeError(
                "layer: wanted a site, its index, or int64 indices of sites"
                f" [{n_rows}], one for each row; got {dtype} {list(layer.shape)}"
            )
        if n_rows == 0:
            return
        low = int(layer.min())
        high = int(layer.max())
        if low < 0 or high >= len(self.sites):
            raise SaeError(
                f"layer: its indices are {low} to {high}; this SAE has"
                f" {len(self.sites)} sites"
            )

    def _index(self, layer: Layer | None) -> int | Tensor:
        """Return the index of a site, or of each row's site."""
        if layer is None:
            raise SaeError(f"which layer? this SAE's sites are {', '.join(self.sites)}")
        if isinstance(layer, str):
            if layer not in self.sites:
                raise SaeError(
                    f"this SAE was not trained on {layer!r}; its sites are"
                    f" {', '.join(self.sites)}"
                )
            return self.sites.index(layer)
        is_index = isinstance(layer, int) and not isinstance(layer, bool)
        if not is_index and not isinstance(layer, Tensor):
            raise SaeError(
                "layer: wanted a site's name, its index, or an int64 tensor of indices,"
                f" got {layer!r}"
            )
        if isinstance(layer, int) and not 0 <= layer < len(self.sites):
            raise SaeError(f"layer {layer}: this SAE has {len(self.sites)} sites")
        return layer

    def _unscaled(self, out: Tensor, index: int | Tensor) -> Tensor:
        """Return outputs of the SAE in original units."""
        wide = out / _scale_of_rows(self.scale_out, index)
        return wide if self.mean_out is None else wide + self.mean_out[index]


def _scale_of_rows(scale: Tensor, index: int | Tensor) -> Tensor:
    """Return the factor of one site, or a column of factors, one for each row."""
    return scale[index] if isinstance(index, int) else scale[index][:, None]


def _check_shape(call: str, what: str, x: Any, last: tuple[int, ...]) -> None:
    """Raise SaeError where x is not a tensor whose last dimensions are these."""
    wanted = f"{call}: wanted {what}, a tensor [..., {', '.join(map(str, last))}]"
    if not isinstance(x, Tensor):
        raise SaeError(
            f"{wanted}; got {type(x).__name__}; torch.from_numpy(x) makes one of an"
            " array"
        )
    if tuple(x.shape[-len(last) :]) != last:
        raise SaeError(f"{wanted}; got {list(x.shape)}")


@checked(
    run=run_folder,
    options=optional(arguments.mapping),
    device=arguments.device,
)
def load(
    run: str | os.PathLike[str],
    options: dict[str, Any] | None = None,
    device: str | torch.device = "cpu",
) -> TrainedSae:
    """Load the trained SAE of a run.

    Args:
        run: The run's folder: a path or any fsspec URL.
        options: Options of the file system, such as credentials.
        device: Where its weights go.

    Returns:
        The SAE, ready for use.

    Raises:
        RunError: There is no finished run, or its weights do not fit its record.

    Examples:
        >>> import trainer
        >>> sae = trainer.load("runs/topk")
        >>> sae.spec.kind, sae.n_latents, len(sae.sites)
        ('topk', 64, 2)
    """
    run = os.fspath(run)
    storage = Storage(run, options)
    try:
        record = read_json(storage, "sae.json", RunRecord)
        limit = most_bytes(record, f"{run}/sae.json")
        weights = read_tensors(storage, "sae.safetensors", ("scale",), limit)
    except CorruptError:  # a kind of ObjectError, but the object is there
        raise
    except ObjectError:
        what = "there is none; check the path"
        if storage.exists("spec.json"):
            what = "this run has not ended; `trainer train --resume` goes on"
        hint = name_hint(run)
        raise RunError(
            f"{run}: wanted a trained SAE (sae.json, sae.safetensors), but {what}"
            + (f"; {hint}" if hint else "")
        ) from None
    where = f"{run}/sae.safetensors"
    return with_tensors(record, weights, where, run).to(device)


def with_tensors(
    record: RunRecord, tensors: dict[str, Tensor], where: str, run: str
) -> TrainedSae:
    """Return the SAE of a record with what `sae.safetensors` holds.

    Args:
        record: The run's record.
        tensors: The weights and the rescaling, [...] by name.
        where: What they are from, for messages.
        run: The run's folder.

    Raises:
        RunError: They do not fit the record.
    """
    weights = dict(tensors)
    if "scale" not in weights:
        raise RunError(
            f"{where}: it has no tensor scale; it was changed or badly written"
        )
    scale = weights.pop("scale")
    mean = weights.pop("mean", None)
    scale_out = weights.pop("scale_out", None)
    mean_out = weights.pop("mean_out", None)
    n_sites = len(record.sites)
    d_out = record.d if record.d_out is None else record.d_out
    check_shapes({"scale": scale, "scale_out": scale_out}, (n_sites,), where)
    check_shapes({"mean": mean}, (n_sites, record.d), where)
    check_shapes({"mean_out": mean_out}, (n_sites, d_out), where)
    sae = sae_with_weights(record, weights, where)
    out = None if scale_out is None else (scale_out, mean_out)
    return TrainedSae(record, sae, scale, mean, run, out)
