"""A finished run without training, and the architectures' formulas in float64,
independent of the package's.
"""

from __future__ import annotations

from typing import Any

import torch
from pydantic import TypeAdapter
from safetensors.torch import save as save_tensors
from torch import Tensor

from actstore.format.storage import Storage
from actstore.store.store import Store
from schemas.records import RunRecord
from schemas.sae import SaeSpec
from trainer.saes.build import build

SITES = ("blocks.0.hook_mlp_out", "blocks.1.hook_mlp_out", "blocks.2.hook_mlp_out")
D, M, D_OUT = 16, 40, 11


SPECS: dict[str, dict[str, Any]] = {
    "relu": {"kind": "relu_l1"},
    "tied": {"kind": "relu_l1", "tied": True},
    "topk": {"kind": "topk", "k": 5},
    "topk_bias": {"kind": "topk", "k": 5, "per_layer_bias": True},
    "gated": {"kind": "gated"},
    "jumprelu": {"kind": "jumprelu"},
    "jumprelu_layers": {
        "kind": "jumprelu",
        "per_layer_threshold": True,
        "per_layer_bias": True,
    },
    "batch_topk": {"kind": "batch_topk", "k": 5},
    "batch_topk_layers": {"kind": "batch_topk", "k": 5, "per_layer_threshold": True},
    "matryoshka": {"kind": "matryoshka", "k": 5},
    "decoder_norm": {
        "kind": "relu_l1",
        "penalty": "decoder_norm",
        "decoder_similarity": 0.1,
    },
}
NONE: dict[str, tuple[dict[str, Any], str]] = {
    "nsae": ({"kind": "nsae"}, "tanh"),
    "mlp_encoder": ({"kind": "mlp_encoder"}, "more than one"),
    "crosscoder": (
        {"kind": "crosscoder", "inner": {"kind": "relu_l1", "n_latents": M}},
        "several sites",
    ),
    "skip": (
        {
            "kind": "transcoder",
            "skip": True,
            "inner": {"kind": "relu_l1", "n_latents": M},
        },
        "skip",
    ),
    "transcoder_topk": (
        {"kind": "transcoder", "inner": {"kind": "topk", "k": 3, "n_latents": M}},
        "inner kind",
    ),
}


def make_run(
    url: str,
    spec: dict[str, Any],
    store: Store | None = None,
    center: bool = True,
    sites: tuple[str, ...] = SITES,
) -> str:
    """Random weights, biases, scales and means; decoder rows of norm 1."""
    generator = torch.Generator().manual_seed(5)
    made: SaeSpec = TypeAdapter(SaeSpec).validate_python(
        spec if "inner" in spec else {"n_latents": M, **spec}
    )
    between = spec["kind"] == "transcoder"
    sae = build(made, D, n_sites=len(sites), d_out=D_OUT if between else None)
    tensors = {
        name: torch.randn(value.shape, generator=generator)
        for name, value in sae.state_dict().items()
    }
    if "threshold" in tensors:
        tensors["threshold"] = tensors["threshold"].abs()
    for name in ("W_dec", "inner.W_dec"):
        if name in tensors:
            tensors[name] /= tensors[name].norm(dim=1, keepdim=True)
    tensors["scale"] = 0.3 + torch.rand(len(sites), generator=generator)
    if center:
        tensors["mean"] = torch.randn(len(sites), D, generator=generator)
    if between:
        tensors["scale_out"] = 0.3 + torch.rand(len(sites), generator=generator)
        if center:
            tensors["mean_out"] = torch.randn(len(sites), D_OUT, generator=generator)
    record = RunRecord(
        sae=made,
        d=D,
        n_latents=M,
        sites=sites,
        targets=tuple(f"{site}.out" for site in sites) if between else (),
        d_out=D_OUT if between else None,
        rescale="log",
        center=center,
        store=store.url if store else "gone",
        content_id=store.manifest.content_id if store else "c0ffee",
        model="synthetic",
        steps=7,
        rows=700,
        seed=0,
    )
    storage = Storage(url)
    storage.put("sae.safetensors", save_tensors(tensors))
    storage.put("sae.json", record.to_json().encode())
    return url


def rows(n: int = 50, d: int = D, seed: int = 1) -> Tensor:
    return 3 * torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def random_state(
    *names: str, d: int = D, m: int = M, d_out: int | None = None
) -> dict[str, Tensor]:
    """Random tensors of the usual shapes; thresholds above 0."""
    generator = torch.Generator().manual_seed(9)
    shapes: dict[str, tuple[int, ...]] = {
        "W_enc": (d, m),
        "W_dec": (m, d_out or d),
        "b_dec": (d_out or d,),
    }
    made = {
        name: torch.randn(shapes.get(name, (m,)), generator=generator) for name in names
    }
    if "threshold" in made:
        made["threshold"] = made["threshold"].abs()
    if "r_mag" in made:
        made["r_mag"] = made["r_mag"] / 4
    return made


def encode(
    architecture: str,
    given: dict[str, Tensor],
    x: Tensor,
    k: int | None = None,
    subtract: bool = True,
    normed: bool = False,
) -> Tensor:
    """Latents by the definition, float64. `normed`: topk ranks (and gives) latents
    times their decoder's norm.
    """
    t = {name: value.double() for name, value in given.items()}
    h = (x.double() - (t["b_dec"] if subtract else 0)) @ t["W_enc"]
    if architecture == "gated":
        return ((h + t["b_gate"]) > 0) * (h * t["r_mag"].exp() + t["b_mag"]).clamp_min(
            0
        )
    pre = h + t["b_enc"]
    if normed:
        pre = pre * t["W_dec"].norm(dim=1)
    if architecture == "jumprelu":
        return pre.clamp_min(0) * (pre > t["threshold"])
    if architecture == "topk":
        assert k is not None
        return torch.where(
            pre >= pre.sort(dim=1, descending=True).values[:, k - 1 : k], pre, 0.0
        ).clamp_min(0)
    return pre.clamp_min(0)


def decode(given: dict[str, Tensor], latents: Tensor) -> Tensor:
    return latents.double() @ given["W_dec"].double() + given["b_dec"].double()


def gap(a: Tensor, b: Tensor) -> float:
    """Largest difference, over the largest value."""
    return float((a.double() - b.double()).abs().max() / b.double().abs().max())
