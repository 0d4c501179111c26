"""Brings one layer's SAE into a form between ours and that of other projects.

The SAE takes and gives activations in their original units, as row vectors: W_enc
[d, m], W_dec [m, d], b_dec [d], all other tensors [m]. With h = (x - b_dec) @ W_enc and
x' = f @ W_dec + b_dec, the architectures, under SAELens' names, are:

- standard: f = relu(h + b_enc)
- topk: f = relu of the k largest of h + b_enc
- jumprelu: f = relu(h + b_enc) where h + b_enc > threshold, else 0
- gated: f = relu(h * exp(r_mag) + b_mag) where h + b_gate > 0, else 0
- transcoder: f = relu(x @ W_enc + b_enc). W_dec [m, d_out] and b_dec [d_out] are those
  of another site, so b_dec is not subtracted from the input.

All arithmetic is in float64 and is rounded once, by `as_float32`. Folding follows from
what an SAE sees, (x - mean) * s: multiplying W_enc by s, dividing W_dec by s and taking
b_dec / s + mean for b_dec gives the same latents and the reconstruction in x's units.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from trainer.errors import ExchangeError
from trainer.runs.trained_sae import TrainedSae
from trainer.saes.build import kind_of, named
from trainer.saes.registry import Kind

Tensors = dict[str, Tensor]

# The tensors that the encoder of each of SAELens' architectures has besides W_enc.
ENCODER = {
    "standard": ("b_enc",),
    "topk": ("b_enc",),
    "jumprelu": ("b_enc", "threshold"),
    "gated": ("b_gate", "b_mag", "r_mag"),
    "transcoder": ("b_enc",),
}

# The parts of an SAE's state that only training needs.
NOT_WEIGHTS = {"updates", "draws._extra_state"}


class PlainSae(NamedTuple):
    """An SAE in the form between ours and theirs.

    Attributes:
        architecture: Its SAELens name.
        tensors: Its tensors by name, those of `names(architecture)`.
        k: Latents per row, for topk only.
    """

    architecture: str
    tensors: Tensors
    k: int | None = None

    @property
    def d(self) -> int:
        """Width of the input."""
        return self.tensors["W_enc"].shape[0]

    @property
    def n_latents(self) -> int:
        """Size of the dictionary, m."""
        return self.tensors["W_enc"].shape[1]


def names(architecture: str) -> tuple[str, ...]:
    """Return the names of all tensors of an architecture."""
    return ("W_enc", "W_dec", "b_dec", *ENCODER[architecture])


def layer_of(sae: TrainedSae, index: int) -> PlainSae:
    """Return one layer of a trained SAE, or one pair of sites of a transcoder.

    The rescaling is folded into the weights.

    Raises:
        ExchangeError: The kind has no counterpart.
    """
    kind = kind_of(sae.spec)
    if kind.counterpart(sae.spec) is None:
        raise _no_counterpart(kind)
    mean = None if sae.mean is None else sae.mean[index]
    state = sae.sae.state_dict()
    if kind.to_other_site:
        inner = {name.removeprefix("inner."): value for name, value in state.items()}
        if inner["b_dec"].ndim == 2:  # a decoder bias for each layer
            inner["b_dec"] = inner["b_dec"][index]
        return transcoder(
            inner,
            scale=float(sae.scale[index]),
            mean=mean,
            scale_out=float(sae.scale_out[index]),
            mean_out=None if sae.mean_out is None else sae.mean_out[index],
        )
    return folded(
        kind.name,
        state,
        scale=float(sae.scale[index]),
        mean=mean,
        k=getattr(sae.spec, "k", None),
        layer=index,
    )


def _no_counterpart(kind: Kind) -> ExchangeError:
    return ExchangeError(
        f"a {kind.name} SAE cannot be written for SAELens: {kind.no_saelens_because};"
        " `--to safetensors` writes it in our own format"
    )


def folded(
    kind: str,
    state: Mapping[str, Tensor],
    scale: float = 1.0,
    mean: Tensor | None = None,
    k: int | None = None,
    layer: int = 0,
) -> PlainSae:
    """Return one layer of an SAE with its rescaling folded into the weights.

    A tied encoder is written out. Of biases and thresholds that differ by layer, those
    of the layer are taken. The encoder's biases stay as they are, since b_dec is
    subtracted from the input.

    Args:
        kind: Our kind of SAE.
        state: Its weights, as `state_dict` gives them.
        scale: The factor of the layer's rows.
        mean: What is subtracted from them before, [d], or None.
        k: Latents per row, for topk.
        layer: The index of the layer.

    Raises:
        ExchangeError: The kind has no counterpart, or the state is not of that kind.
    """
    architecture = named(kind).saelens
    if architecture is None:
        raise _no_counterpart(named(kind))
    tensors = _exact(state)
    tensors.setdefault("W_enc", tensors["W_dec"].T)
    if "log_threshold" in tensors:
        tensors["threshold"] = tensors.pop("log_threshold").exp()
    if "threshold" in tensors:
        n_latents = tensors["W_enc"].shape[1]
        tensors["threshold"] = _thresholds_of(tensors["threshold"], layer, n_latents)
    if tensors["b_dec"].ndim == 2:
        tensors["b_dec"] = tensors["b_dec"][layer]
    exact_mean = 0 if mean is None else mean.detach().double().cpu()
    # With scale 2, mean 3 and b_dec 1, for example, the SAE sees 2 (x - 3) and takes
    # off 1, which is 2 (x - 3.5): the new b_dec is 1 / 2 + 3 = 3.5.
    tensors["W_enc"] = tensors["W_enc"] * scale
    tensors["W_dec"] = tensors["W_dec"] / scale
    tensors["b_dec"] = tensors["b_dec"] / scale + exact_mean
    plain = PlainSae(architecture, tensors, k if architecture == "topk" else None)
    return checked(plain, f"a {kind} SAE")


def _exact(state: Mapping[str, Tensor]) -> Tensors:
    """Return an SAE's weights in float64, without what is there for training only."""
    return {
        name: value.detach().double().cpu()
        for name, value in state.items()
        if name not in NOT_WEIGHTS
    }


def _thresholds_of(given: Tensor, layer: int, n_latents: int) -> Tensor:
    """Return the thresholds of a layer, [m].

    An SAE has one for all latents, one per latent, one per layer, or one per layer and
    latent, [n_sites, m].
    """
    if given.ndim == 2:
        return given[layer]
    if given.numel() in {1, n_latents}:
        return given.expand(n_latents)
    return given[layer].expand(n_latents)


def transcoder(
    state: Mapping[str, Tensor],
    scale: float = 1.0,
    mean: Tensor | None = None,
    scale_out: float = 1.0,
    mean_out: Tensor | None = None,
) -> PlainSae:
    """Return a transcoder with both of its rescalings folded into the weights.

    It sees (x - mean) * scale and does not subtract b_dec, so the mean goes into the
    encoder's bias: b_enc - scale * mean @ W_enc. Its output y is brought back to
    y / scale_out + mean_out.

    Args:
        state: W_enc, b_enc, W_dec and b_dec.
        scale: The factor of the input's rows.
        mean: What is subtracted from them before, [d], or None.
        scale_out: The factor of the target's rows.
        mean_out: What is subtracted from them before, [d_out], or None.
    """
    exact = _exact(state)
    encoder = exact["W_enc"] * scale
    shift = 0 if mean is None else mean.detach().double().cpu() @ encoder
    exact_mean_out = 0 if mean_out is None else mean_out.detach().double().cpu()
    tensors = {
        "W_enc": encoder,
        "b_enc": exact["b_enc"] - shift,
        "W_dec": exact["W_dec"] / scale_out,
        "b_dec": exact["b_dec"] / scale_out + exact_mean_out,
    }
    return checked(PlainSae("transcoder", tensors), "a transcoder")


def with_input_bias(plain: PlainSae) -> PlainSae:
    """Return the same function for an encoder that subtracts b_dec from its input.

    plain: weights whose encoder does *not* subtract it. What is subtracted now is added
    again by the encoder's biases, each of which gains b_dec @ W_enc.
    """
    tensors = dict(plain.tensors)
    shift = tensors["b_dec"] @ tensors["W_enc"]
    for name in ENCODER[plain.architecture]:
        if name in {"b_enc", "b_gate"}:
            tensors[name] = tensors[name] + shift
        elif name == "b_mag":
            # The magnitude's pre-activation is h * exp(r_mag) + b_mag.
            tensors[name] = tensors[name] + shift * tensors["r_mag"].exp()
    return plain._replace(tensors=tensors)


def with_unit_decoder(plain: PlainSae) -> PlainSae:
    """Return the same reconstruction with decoder directions of norm 1.

    Latents are multiplied by the norm that their direction had; a direction of zeros
    stays one. For topk this changes which latents are selected: they are then ranked by
    what they contribute, as with SAELens' `rescale_acts_by_decoder_norm`.
    """
    tensors = dict(plain.tensors)
    norms = tensors["W_dec"].norm(dim=1)
    above_zero = norms.clamp_min(torch.finfo(torch.float64).tiny)
    tensors["W_enc"] = tensors["W_enc"] * norms
    tensors["W_dec"] = tensors["W_dec"] / above_zero[:, None]
    for name in ENCODER[plain.architecture]:
        if name != "r_mag":  # the logarithm of a ratio, which stays
            tensors[name] = tensors[name] * norms
    return plain._replace(tensors=tensors)


def as_float32(plain: PlainSae) -> Tensors:
    """Return the tensors as they are written: float32, contiguous."""
    return {
        name: plain.tensors[name].float().contiguous()
        for name in names(plain.architecture)
    }


def checked(plain: PlainSae, what: str) -> PlainSae:
    """Return an SAE whose tensors are those of its architecture.

    Args:
        plain: The SAE.
        what: What a message calls it.

    Raises:
        ExchangeError: A tensor is missing, is not the architecture's, has another shape
            than it should, or is not finite; or k is missing.
    """
    _check_names(plain, what)
    encoder_shape = list(plain.tensors["W_enc"].shape)
    if len(encoder_shape) != 2:
        raise ExchangeError(f"{what}: W_enc is {encoder_shape}, wanted [d, m]")
    d, m = encoder_shape
    is_transcoder = plain.architecture == "transcoder"
    d_out = plain.tensors["W_dec"].shape[-1] if is_transcoder else d
    shapes = {"W_enc": (d, m), "W_dec": (m, d_out), "b_dec": (d_out,)}
    for name, value in plain.tensors.items():
        wanted = shapes.get(name, (m,))
        if tuple(value.shape) != wanted:
            raise ExchangeError(
                f"{what}: {name} is {list(value.shape)}, wanted {list(wanted)} (W_enc"
                f" is {encoder_shape})"
            )
        if not value.isfinite().all():
            raise ExchangeError(f"{what}: {name} has values that are not finite")
    if plain.architecture == "topk" and not (plain.k and 0 < plain.k <= m):
        raise ExchangeError(f"{what}: wanted a k from 1 to {m}, got {plain.k}")
    return plain


def _check_names(plain: PlainSae, what: str) -> None:
    wanted = set(names(plain.architecture))
    missing = wanted - plain.tensors.keys()
    unknown = plain.tensors.keys() - wanted
    wrong = []
    if missing:
        wrong.append(f"{', '.join(sorted(missing))} is missing")
    if unknown:
        wrong.append(f"{', '.join(sorted(unknown))} is there besides")
    if wrong:
        raise ExchangeError(
            f"{what}: a {plain.architecture} SAE has {', '.join(sorted(wanted))}, but"
            f" {'; '.join(wrong)}"
        )
