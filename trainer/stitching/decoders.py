"""Reads the decoders of runs, without their encoders where the files are local."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from actstore.errors import ObjectError
from actstore.format.storage import Storage
from schemas.records import RunRecord
from trainer.analysis.decoder_directions import read_decoder
from trainer.errors import RunError
from trainer.runs.run_data import name_of, read_run
from trainer.runs.run_files import read_json
from trainer.runs.trained_sae import load
from trainer.stitching.dictionary import check_kind
from trainer.stitching.pair import common_sites, distinct_names


class Decoder(NamedTuple):
    """The decoder of one run.

    Attributes:
        name: What tables call the run.
        rows: Its directions, float32 [m, d], with any positive factor.
        density: Share of a site's evaluated rows on which each latent fires, float64
            [m]; NaN where the run was not evaluated.
    """

    name: str
    rows: Tensor
    density: NDArray[np.float64]


def read_decoders(runs: Sequence[str], site: str | None) -> list[Decoder]:
    """Read the decoders of runs that have a site in common.

    Raises:
        RunError: A run is not finished, or is no SAE of one site; or they share no
            site, or their widths differ.
    """
    records = [_record(run) for run in runs]
    site = _site(runs, records, site)
    names = distinct_names(
        [name_of(run, record) for run, record in zip(runs, records, strict=True)]
    )
    return [
        Decoder(name, read_decoder(run, record), _density(run, record, site))
        for name, run, record in zip(names, runs, records, strict=True)
    ]


def _record(run: str) -> RunRecord:
    storage = Storage(run)
    if not storage.exists("sae.json"):
        load(run)  # says what is missing
    record = read_json(storage, "sae.json", RunRecord)
    check_kind(run, record)
    return record


def _site(runs: Sequence[str], records: Sequence[RunRecord], site: str | None) -> str:
    """Return the site of the comparison; the decoder is the same for all of a run."""
    found = common_sites(records)
    names = ", ".join(runs)
    if not found or (site is not None and site not in found):
        sites = "; ".join(
            f"{run}: {', '.join(record.sites)}"
            for run, record in zip(runs, records, strict=True)
        )
        wanted = "SAEs of one site" if site is None else f"SAEs that have {site}"
        raise RunError(f"{names}: wanted {wanted}; their sites are {sites}")
    for run, record in zip(runs, records, strict=True):
        if record.d != records[0].d:
            raise RunError(
                f"{run}: it is of width {record.d}, {runs[0]} of {records[0].d}; wanted"
                " SAEs of one model"
            )
    return site or found[0]


def _density(run: str, record: RunRecord, site: str) -> NDArray[np.float64]:
    try:
        data = read_run(run)
    except (RunError, ObjectError):
        if Storage(run).exists("eval.json"):
            raise
        return np.full(record.n_latents, np.nan)
    at = record.sites.index(site)
    rows = max(1, int(data.rows[at]))
    return data.firings[at].double().numpy() / rows
