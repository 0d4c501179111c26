"""From a foreign folder to a run that `trainer eval` and `trainer.load` take like one
of ours.
"""

from __future__ import annotations

import json
import math
from typing import NamedTuple

import torch
from pydantic import TypeAdapter, ValidationError
from safetensors.torch import save as save_tensors

from actstore.format.storage import Storage
from actstore.store.store import Store
from actstore.stream.rescale import rescaling
from schemas.records import RunRecord
from schemas.sae import SaeSpec
from trainer.errors import ExchangeError, RunError
from trainer.export.neutral_form import PlainSae, finished
from trainer.imports.foreign_folder import Foreign
from trainer.imports.from_dictionary_learning import (
    is_dictionary_learning,
    read_dictionary_learning,
)
from trainer.imports.from_saelens import is_saelens, read_saelens
from trainer.runs.run_store import origin_of
from trainer.saes.build import Sae, build

KINDS = {
    "standard": "relu_l1",
    "topk": "topk",
    "jumprelu": "jumprelu",
    "gated": "gated",
}
PICKLES = (".pt", ".pth", ".bin", ".pkl", ".ckpt")


class Imported(NamedTuple):
    """The run's record, and what the user should know."""

    record: RunRecord
    notes: tuple[str, ...]


def import_sae(
    folder: str,
    out: str,
    site: str | None = None,
    store: Store | None = None,
    scale: float | None = None,
) -> Imported:
    """Read a foreign folder and write it as a run. Nothing is written unless all of it
    can be made.

    site: the store's name for where the SAE was trained (default: the folder's own);
    store: the one it will be evaluated on, checked for the site and its width; scale:
    the factor of its input, where the folder asks for one that it does not hold
    (default then: from the store's mean norm). Raises ExchangeError, RunError.
    """
    target = Storage(out)
    if not target.is_empty():
        raise RunError(f"{out}: it is not empty; choose another --out")
    foreign = read_folder(folder)
    site = site or foreign.site
    if site is None:
        raise ExchangeError(
            f"{folder}: it does not say which site it is of; give --site, as the store"
            " names it"
        )
    if store is not None:
        _fits(store, site, foreign.plain, folder)
    factor = _factor(foreign, folder, site, store, scale)
    sae = to_sae(foreign.plain, folder)
    d_out = foreign.plain.tensors["W_dec"].shape[1] if foreign.target else None
    record = RunRecord(
        sae=sae.spec,
        d=foreign.plain.d,
        n_latents=foreign.plain.n_latents,
        sites=(site,),
        targets=(foreign.target,) if foreign.target else (),
        d_out=d_out,
        rescale="none" if scale is None and not foreign.sqrt_d else "sqrt_d",
        center=False,
        **(
            origin_of(store, out).model_dump()
            if store
            else {"store": "", "content_id": ""}
        ),
        model=store.manifest.spec.model.name if store else foreign.model,
        steps=0,
        rows=0,
        seed=0,
    )
    tensors = {
        name: value.detach().contiguous() for name, value in sae.state_dict().items()
    }
    tensors["scale"] = torch.tensor([factor], dtype=torch.float32)
    if foreign.target:
        tensors["scale_out"] = torch.ones(1)
    about = {"folder": folder, "format": foreign.form, "config": foreign.config}
    target.put("imported.json", (json.dumps(about, indent=1) + "\n").encode())
    target.put("sae.safetensors", save_tensors(tensors))
    target.put("sae.json", record.to_json().encode())
    return Imported(record, foreign.notes)


def read_folder(folder: str) -> Foreign:
    """A SAELens or dictionary_learning folder. Raises ExchangeError where it is
    neither.
    """
    storage = Storage(folder)
    if is_saelens(storage):
        return read_saelens(storage)
    if is_dictionary_learning(storage):
        return read_dictionary_learning(storage)
    pickles = [name for name in storage.list() if name.endswith(PICKLES)]
    if pickles:
        raise ExchangeError(
            f"{folder}: {pickles[0]} is a pickle, which can run any code when it is"
            " read, so it is not read; save its tensors as a SAELens folder (cfg.json,"
            " sae_weights.safetensors) first"
        )
    raise ExchangeError(
        f"{folder}: wanted a folder of SAELens (cfg.json, sae_weights.safetensors) or"
        " of dictionary_learning (config.json, ae.pt), one SAE each"
    )


def to_sae(plain: PlainSae, where: str) -> Sae:
    """The same function as one of our architectures. Raises ExchangeError where this
    version has none.
    """
    spec: dict[str, object] = {
        "kind": KINDS.get(plain.architecture),
        "n_latents": plain.n_latents,
    }
    between = plain.architecture == "transcoder"
    if between:
        spec = {
            "kind": "transcoder",
            "inner": {"kind": "relu_l1", "n_latents": plain.n_latents},
        }
    if plain.architecture == "topk":
        spec["k"] = plain.k
    try:
        made: SaeSpec = TypeAdapter(SaeSpec).validate_python(spec)
    except ValidationError as error:
        raise ExchangeError(
            f"{where}: this version has no SAE that computes a {plain.architecture} one"
        ) from error
    sae = build(
        made, plain.d, d_out=plain.tensors["W_dec"].shape[1] if between else None
    )
    tensors, state = finished(plain), sae.state_dict()
    if between:
        tensors = {f"inner.{name}": value for name, value in tensors.items()}
    # relu comes first, so that a threshold below 0 is one of 0
    if "log_threshold" in state:
        tensors["log_threshold"] = tensors.pop("threshold").clamp_min(0).log()
    if tensors.keys() != state.keys():
        raise ExchangeError(
            f"{where}: a {made.kind} SAE has {', '.join(state)}, but there are"
            f" {', '.join(tensors)}"
        )
    sae.load_state_dict(tensors)
    return sae


def _fits(store: Store, site: str, plain: PlainSae, folder: str) -> None:
    if site not in store.sites:
        raise ExchangeError(
            f"{store.url}: it has no site {site}; give --site, one of"
            f" {', '.join(store.sites)}"
        )
    if store.site(site).d != plain.d:
        raise ExchangeError(
            f"{folder}: this SAE is of d {plain.d}, but {site} of {store.url} is of"
            f" {store.site(site).d}"
        )


def _factor(
    foreign: Foreign, folder: str, site: str, store: Store | None, scale: float | None
) -> float:
    """What the input is multiplied with."""
    if scale is not None:
        if not (math.isfinite(scale) and scale > 0):
            raise ExchangeError(f"--scale {scale}: wanted a number above 0")
        if not foreign.sqrt_d:
            raise ExchangeError(
                f"{folder}: its input is not scaled, so --scale {scale} would change"
                " what it computes"
            )
        return scale
    if not foreign.sqrt_d:
        return 1.0
    if store is None:
        raise ExchangeError(
            f"{folder}: its input is scaled to mean norm sqrt(d) by a factor that it"
            " does not hold; give the factor as --scale, or --store to take it from"
            " that store's mean norm"
        )
    return float(rescaling(store, (site,), "sqrt_d").scale[0])
