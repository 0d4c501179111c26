"""One layer's SAE on original units, in the terms that other projects use: the step
between ours and theirs.

Row vectors: W_enc [d, m], W_dec [m, d], b_dec [d], everything else [m]. With h = (x -
b_dec) @ W_enc and x' = f @ W_dec + b_dec, the architectures (SAELens' names) are

- standard: f = relu(h + b_enc)
- topk: f = relu of the k largest of h + b_enc
- jumprelu: f = relu(h + b_enc) where h + b_enc > threshold, else 0
- gated: f = relu(h * exp(r_mag) + b_mag) where h + b_gate > 0, else 0
- transcoder: f = relu(x @ W_enc + b_enc); W_dec [m, d_out] and b_dec [d_out] are of
another site, b_dec stays outside

All arithmetic here is in float64; `finished` rounds once.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from schemas.sae import Transcoder
from trainer.errors import ExchangeError
from trainer.runs.trained_sae import TrainedSae

Tensors = dict[str, Tensor]
ENCODER = {
    "standard": ("b_enc",),
    "topk": ("b_enc",),
    "jumprelu": ("b_enc", "threshold"),
    "gated": ("b_gate", "b_mag", "r_mag"),
    "transcoder": ("b_enc",),
}
COUNTERPARTS = {
    "relu_l1": "standard",
    "topk": "topk",
    "jumprelu": "jumprelu",
    "batch_topk": "jumprelu",
    "matryoshka": "jumprelu",
    "gated": "gated",
}
NONE_BECAUSE = {
    "nsae": "its latents are a tanh",
    "mlp_encoder": "its encoder has more than one layer",
    "crosscoder": "its rows are of several sites at once",
    "transcoder": (
        "of transcoders only those with inner kind relu_l1 and without a skip"
        " connection have a place there"
    ),
}
NOT_WEIGHTS = {"updates", "draws._extra_state"}


class PlainSae(NamedTuple):
    """Tensors as `names(architecture)` says; k for topk only."""

    architecture: str
    tensors: Tensors
    k: int | None = None

    @property
    def d(self) -> int:
        return self.tensors["W_enc"].shape[0]

    @property
    def n_latents(self) -> int:
        return self.tensors["W_enc"].shape[1]


def names(architecture: str) -> tuple[str, ...]:
    """Tensors of an architecture, all of them."""
    return ("W_enc", "W_dec", "b_dec", *ENCODER[architecture])


def counterpart(kind: str) -> str:
    """The architecture that computes the same as one of our kinds. Raises ExchangeError
    where there is none.
    """
    if kind in COUNTERPARTS:
        return COUNTERPARTS[kind]
    because = NONE_BECAUSE.get(kind, "no counterpart is known")
    raise ExchangeError(
        f"a {kind} SAE cannot be written for SAELens: {because}; `--to safetensors`"
        " writes it in our own format"
    )


def of_layer(sae: TrainedSae, at: int) -> PlainSae:
    """One layer of a trained SAE, or one pair of sites of a transcoder, its rescaling
    folded in.
    """
    mean = None if sae.mean is None else sae.mean[at]
    state = sae.sae.state_dict()
    if isinstance(sae.spec, Transcoder):
        if sae.spec.inner.kind != "relu_l1" or sae.spec.skip:
            counterpart("transcoder")
        inner = {name.removeprefix("inner."): value for name, value in state.items()}
        if inner["b_dec"].ndim == 2:
            inner["b_dec"] = inner["b_dec"][at]
        mean_out = None if sae.mean_out is None else sae.mean_out[at]
        return transcoder(
            inner, float(sae.scale[at]), mean, float(sae.scale_out[at]), mean_out
        )
    return folded(
        sae.spec.kind,
        state,
        float(sae.scale[at]),
        mean,
        getattr(sae.spec, "k", None),
        at,
    )


def folded(
    kind: str,
    state: Mapping[str, Tensor],
    scale: float = 1.0,
    mean: Tensor | None = None,
    k: int | None = None,
    layer: int = 0,
) -> PlainSae:
    """A kind's state with x' = (x - mean) * scale folded in (saelens-format: Folding).

    W_enc *= s; W_dec /= s; b_dec = b_dec / s + mean; the rest stays, since b_dec is
    subtracted from the input. A tied encoder is written out; of a b_dec [n_sites, d]
    and of thresholds per layer only `layer` is taken. Raises ExchangeError where the
    kind has no counterpart, or the state is not of that kind.
    """
    architecture = counterpart(kind)
    exact = {
        name: value.detach().double().cpu()
        for name, value in state.items()
        if name not in NOT_WEIGHTS
    }
    exact.setdefault("W_enc", exact["W_dec"].T)
    if "log_threshold" in exact:
        exact["threshold"] = exact.pop("log_threshold").exp()
    if "threshold" in exact:
        exact["threshold"] = _threshold(
            exact["threshold"], layer, exact["W_enc"].shape[1]
        )
    if exact["b_dec"].ndim == 2:
        exact["b_dec"] = exact["b_dec"][layer]
    exact["W_enc"] = exact["W_enc"] * scale
    exact["W_dec"] = exact["W_dec"] / scale
    exact["b_dec"] = exact["b_dec"] / scale + (
        0 if mean is None else mean.detach().double().cpu()
    )
    return checked(
        PlainSae(architecture, exact, k if architecture == "topk" else None),
        f"a {kind} SAE",
    )


def _threshold(given: Tensor, layer: int, n_latents: int) -> Tensor:
    """Thresholds [m] of a layer, from one for all, one per latent, one per layer, or
    [n_sites, m].
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
    """W_enc, b_enc, W_dec, b_dec between two sites, with both rescalings folded in.

    The input's: W_enc *= s, b_enc -= s * mean @ W_enc; the output's: W_dec /= s', b_dec
    = b_dec / s' + mean'.
    """
    exact = {
        name: value.detach().double().cpu()
        for name, value in state.items()
        if name not in NOT_WEIGHTS
    }
    encoder = exact["W_enc"] * scale
    shift = 0 if mean is None else mean.detach().double().cpu() @ encoder
    out = 0 if mean_out is None else mean_out.detach().double().cpu()
    tensors = {
        "W_enc": encoder,
        "b_enc": exact["b_enc"] - shift,
        "W_dec": exact["W_dec"] / scale_out,
        "b_dec": exact["b_dec"] / scale_out + out,
    }
    return checked(PlainSae("transcoder", tensors), "a transcoder")


def with_input_bias(plain: PlainSae) -> PlainSae:
    """The same function, from weights whose encoder does *not* subtract b_dec: each
    bias gains b_dec @ W_enc.
    """
    exact = dict(plain.tensors)
    shift = exact["b_dec"] @ exact["W_enc"]
    for name in ENCODER[plain.architecture]:
        if name in {"b_enc", "b_gate"}:
            exact[name] = exact[name] + shift
        elif name == "b_mag":
            exact[name] = exact[name] + shift * exact["r_mag"].exp()
    return plain._replace(tensors=exact)


def with_unit_decoder(plain: PlainSae) -> PlainSae:
    """Decoder rows at norm 1, their norm in the latents (saelens-format: Folding); a
    row of zeros stays one.

    f becomes f * norm, x' stays. For topk this changes which latents are selected: it
    is the selection of an SAE that ranks latents by their contribution (SAELens'
    `rescale_acts_by_decoder_norm`).
    """
    exact = dict(plain.tensors)
    norms = exact["W_dec"].norm(dim=1)
    exact["W_enc"] = exact["W_enc"] * norms
    exact["W_dec"] = (
        exact["W_dec"] / norms.clamp_min(torch.finfo(torch.float64).tiny)[:, None]
    )
    for name in ENCODER[plain.architecture]:
        if name != "r_mag":
            exact[name] = exact[name] * norms
    return plain._replace(tensors=exact)


def finished(plain: PlainSae) -> Tensors:
    """float32, contiguous, ready to be written."""
    return {
        name: plain.tensors[name].float().contiguous()
        for name in names(plain.architecture)
    }


def checked(plain: PlainSae, what: str) -> PlainSae:
    """The SAE, if its tensors are those of its architecture, of the right shapes, and
    finite; else ExchangeError.
    """
    wanted = set(names(plain.architecture))
    missing, more = wanted - plain.tensors.keys(), plain.tensors.keys() - wanted
    if missing or more:
        raise ExchangeError(
            f"{what}: a {plain.architecture} SAE has {', '.join(sorted(wanted))}, but "
            + "; ".join(
                f"{', '.join(sorted(some))} {text}"
                for some, text in ((missing, "is missing"), (more, "is there besides"))
                if some
            )
        )
    if plain.tensors["W_enc"].ndim != 2:
        raise ExchangeError(
            f"{what}: W_enc is {list(plain.tensors['W_enc'].shape)}, wanted [d, m]"
        )
    d, m, d_out = plain.d, plain.n_latents, plain.tensors["W_dec"].shape[-1]
    if plain.architecture != "transcoder":
        d_out = d
    shapes = {"W_enc": (d, m), "W_dec": (m, d_out), "b_dec": (d_out,)}
    for name, value in plain.tensors.items():
        if tuple(value.shape) != shapes.get(name, (m,)):
            raise ExchangeError(
                f"{what}: {name} is {list(value.shape)}, wanted"
                f" {list(shapes.get(name, (m,)))} (W_enc is {[d, m]})"
            )
        if not value.isfinite().all():
            raise ExchangeError(f"{what}: {name} has values that are not finite")
    if plain.architecture == "topk" and not (plain.k and 0 < plain.k <= m):
        raise ExchangeError(f"{what}: wanted a k from 1 to {m}, got {plain.k}")
    return plain
