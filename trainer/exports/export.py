"""Exports a run: reads it, makes the files, and puts them where they are wanted."""

from __future__ import annotations

import os

from actstore import arguments
from actstore.arguments import checked, optional
from actstore.errors import ExistsError
from actstore.format.storage import Storage
from trainer.errors import ExchangeError
from trainer.exports import hub
from trainer.exports.export_origin import read_origin
from trainer.exports.own_format import safetensors_files
from trainer.exports.saelens_format import saelens_files
from trainer.runs.run_arguments import run_folder
from trainer.runs.trained_sae import load

FORMATS = ("saelens", "safetensors")


@checked(
    run=run_folder,
    out=arguments.folder,
    to=arguments.choice(*FORMATS),
    store=optional(arguments.folder),
    private=arguments.flag,
)
def export(
    run: str | os.PathLike[str],
    out: str | os.PathLike[str],
    to: str = "saelens",
    store: str | os.PathLike[str] | None = None,
    private: bool = False,
) -> str:
    """Write a trained SAE for others, with a model card.

    Nothing is written unless all of it can be made. A push to the hub takes its token
    from the environment variable HF_TOKEN.

    Args:
        run: The run's folder: a path or any fsspec URL.
        out: A new folder: a path, any fsspec URL, or hf://user/name.
        to: "saelens", a folder per site, or "safetensors", our own format.
        store: Where the run's store lies now; it adds the corpus to the model card.
            None for where it was.
        private: A new repository on the hub is private.

    Returns:
        Where the export lies; on the hub the URL of the commit.

    Raises:
        RunError: There is no finished run.
        SpecError: An argument cannot be used.
        ExchangeError: The format does not have that kind of SAE.
        ExistsError: Something is in `out` already.
        HubError: The hub cannot be reached, or refuses.

    Examples:
        >>> import trainer
        >>> trainer.export("runs/topk", "exported/saelens")
        'exported/saelens'
        >>> trainer.export("runs/topk", "exported/own", to="safetensors")
        'exported/own'
        >>> trainer.load("exported/own").n_latents
        64
    """
    run = os.fspath(run)
    out = os.fspath(out)
    store = arguments.path_or_none(store)
    if hub.is_hub(out):
        hub.parse(out)  # a URL that is not understood is refused before any work
    elif private:
        raise ExchangeError(
            f"--private is for a new repository on the hub, and {out} is not on the"
            " hub; leave it out"
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
        message = (
            f"Sparse autoencoder of {origin.record.model}, run {origin.run_id[:12]}"
        )
        return hub.push(files, out, message, private)
    storage = Storage(out)
    for name, data in files.items():
        storage.put(name, data)
    return out
