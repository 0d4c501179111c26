"""One export: read the run, make the files, put them where they are wanted."""

from __future__ import annotations

from actstore.errors import ExistsError
from actstore.format.storage import Storage
from trainer.errors import ExchangeError
from trainer.export import hub
from trainer.export.export_origin import read_origin
from trainer.export.own_format import safetensors_files
from trainer.export.saelens_format import saelens_files
from trainer.runs.trained_sae import load

FORMATS = ("saelens", "safetensors")


def export_run(
    run: str, out: str, to: str, store: str | None = None, private: bool = False
) -> str:
    """Write the SAE of a run to `out`; returns where it lies. Nothing is written unless
    all of it can be made.

    Raises RunError (no finished run), ExchangeError (a kind the format does not have),
    ExistsError, HubError.
    """
    if to not in FORMATS:
        raise ExchangeError(f"--to {to}: wanted {' or '.join(FORMATS)}")
    if hub.is_hub(out):
        hub.parse(out)
    elif private:
        raise ExchangeError(
            f"--private is of a new repository on the hub, and {out} is none; leave"
            " it out"
        )
    elif not Storage(out).is_empty():
        raise ExistsError(
            f"{out}: wanted a new or empty folder for the export, but something is"
            " there"
        )
    sae = load(run)
    origin = read_origin(run, store)
    files = saelens_files(sae, origin) if to == "saelens" else safetensors_files(origin)
    if hub.is_hub(out):
        return hub.push(
            files,
            out,
            f"Sparse autoencoder of {origin.record.model}, run {origin.run_id[:12]}",
            private,
        )
    storage = Storage(out)
    for name, data in files.items():
        storage.put(name, data)
    return out
