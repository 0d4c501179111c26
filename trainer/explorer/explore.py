"""Makes the explorer of a run: its files, and from them one page."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from actstore import arguments
from actstore.arguments import checked, optional
from actstore.format.json_records import read_record
from actstore.format.object_sizes import SMALL_JSON
from actstore.format.storage import Storage
from actstore.store.store import Store
from schemas.explorer import ExplorerRecord
from trainer.errors import RunError
from trainer.explorer.explorer_tables import FOLDER, META
from trainer.explorer.gather_contexts import CONTEXTS, MEMORY, gather
from trainer.explorer.latent_columns import Sources
from trainer.explorer.nearest import check_widths, directions
from trainer.explorer.page_file import page_file
from trainer.explorer.read_explorer import Explorer
from trainer.explorer.remote_files import put_files
from trainer.explorer.token_effects import Unembedding, unembedding_of
from trainer.explorer.write_explorer import record_of, weights_of, write_explorer
from trainer.runs.notes import Tell, as_warning
from trainer.runs.run_arguments import run_folder, run_folders
from trainer.runs.run_store import store_of
from trainer.runs.trained_sae import TrainedSae, load

# Is told what is being done, how much of it is, and how much there is.
Progress = Callable[[str, int, int], None]


@checked(
    run=run_folder,
    page=optional(arguments.folder),
    out=optional(arguments.folder),
    beside=run_folders,
    store=optional(arguments.folder),
    split=arguments.choice("held_out", "train"),
    rows=optional(arguments.count),
    contexts=arguments.count_up_to(64),
    memory=arguments.size,
    logits=arguments.flag,
    model=optional(arguments.folder),
    again=arguments.flag,
    trust_remote_code=arguments.flag,
    device=arguments.device,
    tell=arguments.callback,
    progress=optional(arguments.callback),
)
def explore(
    run: str | os.PathLike[str],
    page: str | os.PathLike[str] | None = None,
    *,
    out: str | os.PathLike[str] | None = None,
    beside: Sequence[str | os.PathLike[str]] = (),
    store: str | os.PathLike[str] | None = None,
    split: str = "held_out",
    rows: int | str | None = None,
    contexts: int = CONTEXTS,
    memory: int | str = MEMORY,
    logits: bool = True,
    model: str | os.PathLike[str] | None = None,
    again: bool = False,
    trust_remote_code: bool = False,
    device: str = "cpu",
    tell: Tell = as_warning,
    progress: Progress | None = None,
) -> str:
    """Make the feature explorer of a run, and one page of it where that is wanted.

    Files that are there are used as they are, unless `again` is given.

    Args:
        run: The run's folder: a path or any fsspec URL.
        page: One self-contained HTML file to write; None for none.
        out: A local folder for the files; None for `explorer` in the run's folder.
        beside: Other runs, whose latents are compared with those of this one.
        store: The store; None for the one that the run was trained from.
        split: "held_out" or "train": the rows that are looked at.
        rows: At most so many rows of each site: 50_000 or "50k"; None for all.
        contexts: How many of the strongest contexts are kept of each latent.
        memory: Bytes that may be taken beside the SAEs: "1GiB".
        logits: Also see which output tokens each latent boosts and suppresses.
        model: Where the language model is now; None for where the harvest found it.
        again: Make files again that are there.
        trust_remote_code: Run code that comes with the language model.
        device: Where the SAE runs.
        tell: Is given what should be known though it is no error.
        progress: Is called with what is being done, how much is, and how much there is.

    Returns:
        The folder of the files.

    Raises:
        RunError: There is no finished run, no store that fits it, or another run's
            latents are of another width.

    Examples:
        >>> import trainer
        >>> trainer.explore("runs/topk", "latents.html", rows=500, logits=False)
        'runs/topk/explorer'
    """
    run = os.fspath(run)
    files = explorer_files(run, arguments.path_or_none(out))
    folder = files.local or files.url
    is_there = files.exists(META)
    if is_there and not again and not _is_of(files, run):
        tell(f"{folder}: its files are of other weights than the run's; made again")
        again = True
    if again or not is_there:
        sae = load(run, device=device)
        opened = store_of(run, sae.record, arguments.path_or_none(store))
        if opened.note is not None:
            tell(opened.note)
        others = [load(url, device=device) for url in arguments.folders(beside)]
        for other in others:
            check_widths(sae, other)
        through: Unembedding | str = "they were left out (--no-logits)"
        if logits:
            through = unembedding_of(
                sae,
                opened.store,
                arguments.path_or_none(model),
                trust_remote_code=trust_remote_code,
            )
            if isinstance(through, str):
                tell(f"{run}: no output tokens: {through}")
        _make(
            sae,
            opened.store,
            others,
            through,
            files,
            split=split,
            max_rows=None if rows is None else arguments.count(rows),
            n_contexts=contexts,
            memory=arguments.size(memory),
            progress=progress,
            tokenizer=opened.store.tokenizer(trust_remote_code=trust_remote_code),
        )
    elif (
        beside
        or store is not None
        or split != "held_out"
        or rows is not None
        or contexts != CONTEXTS
        or arguments.size(memory) != arguments.size(MEMORY)
        or not logits
        or model is not None
    ):
        tell(f"{folder}: its files are used as they are; --again makes them again")
    if page is not None:
        path = Path(os.fspath(page))
        path.parent.mkdir(parents=True, exist_ok=True)
        page_file(Explorer(folder), path, progress)
    return str(folder)


def _is_of(files: Storage, run: str) -> bool:
    """Return whether the files in a folder are of a run's present weights."""
    record = read_record(files, META, ExplorerRecord, SMALL_JSON)
    return record.weights in {"", weights_of(run)}


def explorer_files(run: str, out: str | None = None) -> Storage:
    """Return the folder of a run's explorer: `explorer` in its own, or the given one.

    Raises:
        RunError: The folder that is given is not on a local disk.
    """
    if out is None:
        return Storage(run).child(FOLDER)
    files = Storage(out)
    if files.local is None:
        raise RunError(f"--out {out}: wanted a local folder")
    return files


def _make(
    sae: TrainedSae,
    store: Store,
    others: Sequence[TrainedSae],
    through: Unembedding | str,
    files: Storage,
    *,
    split: str,
    max_rows: int | None,
    n_contexts: int,
    memory: int,
    progress: Progress | None,
    tokenizer: Any,
) -> None:
    """Gather what there is, and write the files."""
    if files.local is not None:
        files.local.mkdir(parents=True, exist_ok=True)
    # Beside the files, where there is room for them; not in /tmp, which may be memory.
    with tempfile.TemporaryDirectory(dir=files.local, prefix=".gathering-") as scratch:
        folder = files.local or Path(scratch) / FOLDER
        found = gather(
            sae,
            store,
            Path(scratch),
            split=split,
            max_rows=max_rows,
            n_contexts=n_contexts,
            memory=memory,
            tick=_tick("rows", progress),
        )
        no_logits = through if isinstance(through, str) else None
        sources = Sources(
            sae=sae,
            store=store,
            found=found,
            record=record_of(sae, store, found, others, no_logits),
            own=directions(sae),
            others=[directions(other) for other in others],
            through=None if isinstance(through, str) else through,
            tokenizer=tokenizer,
            memory=memory // 8,
        )
        folder.mkdir(exist_ok=True)
        write_explorer(sources, folder, _tick("latents", progress))
        if files.local is None:
            put_files(folder, files)


def _tick(what: str, progress: Progress | None) -> Callable[[int, int], None] | None:
    if progress is None:
        return None
    return lambda done, total: progress(what, done, total)
