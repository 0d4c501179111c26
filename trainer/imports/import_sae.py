"""Makes a run of a published SAE, which `trainer eval` and the rest take like ours."""

from __future__ import annotations

import json
import math
import os
from typing import NamedTuple

import torch
from pydantic import TypeAdapter, ValidationError
from safetensors.torch import save as save_tensors

from actstore import arguments
from actstore.arguments import checked, optional
from actstore.format.storage import Storage
from actstore.store.open_store import opened
from actstore.store.store import Store
from actstore.stream.rescale import rescaling
from schemas.records import RunRecord, StoreOrigin
from schemas.sae import SaeSpec
from trainer.errors import ExchangeError, RunError
from trainer.exports.neutral_form import PlainSae, as_float32
from trainer.imports.foreign_folder import Foreign
from trainer.imports.from_dictionary_learning import (
    is_dictionary_learning,
    read_dictionary_learning,
)
from trainer.imports.from_saelens import is_saelens, read_saelens
from trainer.runs.run_store import origin_of
from trainer.saes.build import Sae, build, kind_importing

# What the names of pickled weights end with.
PICKLES = (".pt", ".pth", ".bin", ".pkl", ".ckpt")


class Imported(NamedTuple):
    """An SAE that was imported.

    Attributes:
        record: The run's record.
        notes: What the user should know.
    """

    record: RunRecord
    notes: tuple[str, ...]


@checked(
    folder=arguments.folder,
    out=arguments.folder,
    site=optional(arguments.text),
    scale=optional(arguments.positive),
)
def import_sae(
    folder: str | os.PathLike[str],
    out: str | os.PathLike[str],
    site: str | None = None,
    store: str | os.PathLike[str] | Store | None = None,
    scale: float | None = None,
) -> Imported:
    """Make a run of an SAE in a folder of SAELens or dictionary_learning.

    Nothing is written unless all of it can be made.

    Args:
        folder: The folder: a path or any fsspec URL.
        out: The run's folder that is made.
        site: The store's name for where the SAE was trained; None for the folder's own.
        store: The store that it will be evaluated on, or its URL. It is checked for the
            site and its width. None: no store is known yet.
        scale: The factor of its input, where the folder asks for one that it does not
            hold. None: it is taken from the store's mean norm.

    Returns:
        The run's record, and notes.

    Raises:
        ExchangeError: The folder cannot be read exactly, or does not fit the store.
        RunError: `out` is not empty.

    Examples:
        >>> import trainer
        >>> _ = trainer.export("runs/topk", "exported/for_import")
        >>> folder = "exported/for_import/blocks.0.hook_mlp_out"
        >>> imported = trainer.import_sae(folder, "runs/imported", store="store")
        >>> imported.record.sae.kind, imported.record.sites
        ('topk', ('blocks.0.hook_mlp_out',))
    """
    target = Storage(out)
    if not target.is_empty():
        raise RunError(f"{out}: it is not empty; choose another --out")
    folder = os.fspath(folder)
    out = os.fspath(out)
    known_store = _opened(store)
    foreign = read_folder(folder)
    site = site or foreign.site
    if site is None:
        raise ExchangeError(
            f"{folder}: it does not say which site it is of; give --site, as the store"
            " names it"
        )
    if known_store is not None:
        _check_fits(known_store, site, foreign.plain, folder)
    factor = _factor(foreign, folder, site, known_store, scale)
    sae = to_sae(foreign.plain, folder)
    record = _record(foreign, sae, site, known_store, out, scale)
    tensors = {
        name: value.detach().contiguous() for name, value in sae.state_dict().items()
    }
    tensors["scale"] = torch.tensor([factor], dtype=torch.float32)
    if foreign.target:
        tensors["scale_out"] = torch.ones(1)
    about = {"folder": folder, "format": foreign.form, "config": foreign.config}
    target.put("imported.json", (json.dumps(about, indent=1) + "\n").encode())
    target.put("sae.safetensors", save_tensors(tensors))
    # Last, since it is what makes the folder a finished run.
    target.put("sae.json", record.to_json().encode())
    return Imported(record, foreign.notes)


def _opened(store: str | os.PathLike[str] | Store | None) -> Store | None:
    return None if store is None else opened(store, "import_sae")


def read_folder(folder: str) -> Foreign:
    """Read a SAELens or dictionary_learning folder.

    Raises:
        ExchangeError: It is neither.
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
    """Build an SAE of ours that computes the same function.

    Args:
        plain: The SAE.
        where: What it was read from, for messages.

    Raises:
        ExchangeError: This version has no such SAE.
    """
    is_transcoder = plain.architecture == "transcoder"
    no_such_sae = (
        f"{where}: this version has no SAE that computes a {plain.architecture} one"
    )
    kind = kind_importing(plain.architecture)
    # The latents of SAELens' transcoders are those of its standard architecture.
    latents_kind = kind_importing("standard") if is_transcoder else kind
    if kind is None or latents_kind is None:
        raise ExchangeError(no_such_sae)
    spec: dict[str, object] = {"kind": latents_kind.name, "n_latents": plain.n_latents}
    if plain.architecture == "topk":
        spec["k"] = plain.k
    if is_transcoder:
        spec = {"kind": kind.name, "inner": spec}
    try:
        sae_spec: SaeSpec = TypeAdapter(SaeSpec).validate_python(spec)
    except ValidationError as error:
        raise ExchangeError(no_such_sae) from error
    d_out = plain.tensors["W_dec"].shape[1] if is_transcoder else None
    sae = build(sae_spec, plain.d, d_out=d_out)
    wanted = sae.state_dict()
    tensors = as_float32(plain)
    if is_transcoder:
        tensors = {f"inner.{name}": value for name, value in tensors.items()}
    if "log_threshold" in wanted:
        # The ReLU comes first, so a threshold below 0 does what 0 does.
        tensors["log_threshold"] = tensors.pop("threshold").clamp_min(0).log()
    if tensors.keys() != wanted.keys():
        raise ExchangeError(
            f"{where}: a {sae_spec.kind} SAE has {', '.join(wanted)}, but there are"
            f" {', '.join(tensors)}"
        )
    sae.load_state_dict(tensors)
    return sae


def _record(
    foreign: Foreign,
    sae: Sae,
    site: str,
    store: Store | None,
    out: str,
    scale: float | None,
) -> RunRecord:
    """Return the record of the run in the folder `out`."""
    origin = StoreOrigin(store="", content_id="")
    model = foreign.model
    if store is not None:
        origin = origin_of(store, out)
        model = store.manifest.spec.model.name
    is_scaled = scale is not None or foreign.sqrt_d
    return RunRecord(
        sae=sae.spec,
        d=foreign.plain.d,
        n_latents=foreign.plain.n_latents,
        sites=(site,),
        targets=(foreign.target,) if foreign.target else (),
        d_out=foreign.plain.tensors["W_dec"].shape[1] if foreign.target else None,
        rescale="sqrt_d" if is_scaled else "none",
        center=False,
        store=origin.store,
        store_path=origin.store_path,
        content_id=origin.content_id,
        model=model,
        steps=0,
        rows=0,
        seed=0,
    )


def _check_fits(store: Store, site: str, plain: PlainSae, folder: str) -> None:
    """Raise ExchangeError where a store does not have the site, or at another width."""
    if site not in store.sites:
        raise ExchangeError(
            f"{store.url}: it has no site {site}; give --site, one of"
            f" {', '.join(store.sites)}"
        )
    width = store.site(site).d
    if width != plain.d:
        raise ExchangeError(
            f"{folder}: this SAE is of d {plain.d}, but {site} of {store.url} is of"
            f" {width}"
        )


def _factor(
    foreign: Foreign, folder: str, site: str, store: Store | None, scale: float | None
) -> float:
    """Return what the SAE's input is multiplied with."""
    if scale is not None:
        if not (math.isfinite(scale) and scale > 0):
            raise ExchangeError(f"--scale {scale}: wanted a number above 0")
        if not foreign.sqrt_d:
            raise ExchangeError(
                f"{folder}: its input is not scaled, so --scale {scale} would change"
                " what it computes; leave it out"
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
