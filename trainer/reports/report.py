"""Writes the report: what a store and the evaluations of runs say, as one page."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from importlib.metadata import version

from actstore import arguments
from actstore.arguments import checked, optional
from actstore.figures.page import page
from actstore.format.storage import Storage
from actstore.model.checkpoint_files import confirm_code
from actstore.store.store import Store
from trainer.analysis.curves import thinned
from trainer.analysis.evidence import read_evidence
from trainer.analysis.seed_groups import with_own_names
from trainer.errors import RunError
from trainer.evaluation import metrics_of_rows
from trainer.explorer.cards import card_style
from trainer.reports.cards import cards
from trainer.reports.front_of_runs import shown_run
from trainer.reports.run_figures import legend_of
from trainer.reports.sections import sections_of
from trainer.reports.tables import other_stores
from trainer.runs import published_names
from trainer.runs.notes import Tell, as_warning
from trainer.runs.run_arguments import run_folders
from trainer.runs.run_data import RunData, read_run
from trainer.runs.run_store import RunStore, store_of
from trainer.runs.trained_sae import load

TITLE = "Sparse autoencoders across layers"
N_LATENTS = 12
MOST_POINTS = 2_400  # of the curves of all runs together


@checked(
    runs=run_folders,
    out=arguments.folder,
    store=optional(arguments.folder),
    latents=arguments.count_from_0,
    title=arguments.text,
    text=optional(arguments.text),
    evidence=arguments.folders,
    trust_remote_code=arguments.flag,
    tell=arguments.callback,
)
def report(
    runs: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str] = "report.html",
    *,
    store: str | os.PathLike[str] | None = None,
    latents: int = N_LATENTS,
    title: str = TITLE,
    text: str | None = None,
    evidence: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] = (),
    trust_remote_code: bool = False,
    tell: Tell = as_warning,
) -> str:
    """Write one self-contained page about one or more runs.

    Runs that have not been evaluated yet are, on held-out rows. The page's first part is
    about the store of the first run.

    Args:
        runs: The folder of a run, or several.
        out: The HTML file: a path or any fsspec URL.
        store: The store; None for those that the runs were trained from.
        latents: How many latents are shown with the contexts where they fire most.
        title: The page's title.
        text: What the page says below its title; a blank line begins a paragraph.
        evidence: Folders with tables of analyses (`trainer analyze ... --out FOLDER`),
            which the page shows too.
        trust_remote_code: Run code that the store keeps with its tokenizer, where the
            harvest was told so.
        tell: Is given what should be known though it is no error; by default each such
            note is a TrainerWarning.

    Returns:
        Where the page is, which is `out`.

    Raises:
        RunError: There is no finished run, no store that fits it, or `out` is no file.

    Examples:
        >>> import trainer
        >>> trainer.report(["runs/topk"], "report.html", latents=2)
        'report.html'
    """
    urls = arguments.folders(runs)
    folders = arguments.folders(evidence)
    out = os.fspath(out)
    store = arguments.path_or_none(store)
    if not urls:
        raise RunError("which runs? give at least one run folder")
    folder, name = _folder_and_name(out)
    # All stores are opened before any run is evaluated, which may take long.
    stores = {url: store_of(url, load(url).record, store) for url in urls}
    first_store = stores[urls[0]].store
    trusts = trust_remote_code
    if trusts:
        confirm_code(first_store.manifest.spec.model, trusts, first_store.url)
    data = [_evaluated(url, stores[url].store) for url in urls]
    data = _lighter(with_own_names(data))
    tables = [table for folder in folders for table in read_evidence(folder)]
    shown = shown_run(data)
    shown_store = stores[shown.url].store
    of_latents = cards(shown, shown_store, latents, trust_remote_code=trusts)
    sections = sections_of(data, first_store, shown, of_latents, tables)
    lead = [*_paragraphs(text or ""), *_lead(data, first_store)]
    whole = page(title, lead, sections, legend_of(data), _footer(), card_style())
    Storage(folder).put(name, whole.encode())
    _tell_notes(stores.values(), tell)
    return out


def _tell_notes(stores: Iterable[RunStore], tell: Tell) -> None:
    """Tell what should be known of the stores that were opened."""
    for opened in stores:
        if opened.note is not None:
            tell(opened.note)


def _lighter(runs: Sequence[RunData]) -> list[RunData]:
    """Return runs with fewer lines of their journals, so that the page stays small."""
    most = max(20, MOST_POINTS // len(runs))
    return [run._replace(steps=thinned(run.steps, most)) for run in runs]


def _folder_and_name(url: str) -> tuple[str, str]:
    """Return the folder and the name of a file, from its path or URL.

    `s3://bucket/report.html` is `s3://bucket` and `report.html`; `report.html` lies in
    `.`. Raises RunError where either is missing.
    """
    scheme, mark, path = url.rpartition("://")
    folder, slash, name = path.rpartition("/")
    if not name or (mark and not folder):
        raise RunError(
            f"--out {url}: wanted a file, in a folder or bucket where it is a URL:"
            " s3://bucket/report.html"
        )
    return scheme + mark + folder or slash or ".", name


def _evaluated(run: str, store: Store) -> RunData:
    if not Storage(run).exists("eval.json"):
        record, firings = metrics_of_rows.evaluate_rows(load(run), store)
        metrics_of_rows.write_evaluation(run, record, firings)
    return read_run(run)


def _lead(runs: Sequence[RunData], store: Store) -> Iterable[str]:
    """Yield what the page is about: the model, the corpus, the rows, the store."""
    manifest = store.manifest
    model = published_names.name(manifest.spec.model.name)
    corpus = published_names.name(manifest.spec.corpus.name)
    n_held_out = manifest.n_rows - manifest.n_train_rows
    sites = {site for run in runs for site in run.record.sites}
    yield (
        f"{_counted(len(runs), 'SAE')} trained on {_counted(len(sites), 'site')} of"
        f" {model} over {corpus}: {manifest.n_train_rows:,} training rows per site,"
        f" {n_held_out:,} held out. Every metric of a run is on {_which_rows(runs)}, in"
        " the units of the original activations. Store"
        f" {manifest.content_id[:16]}."
    )
    warning = other_stores(runs, store)
    if warning:
        yield warning


def _counted(number: int, thing: str) -> str:
    return f"{number:,} {thing}" if number == 1 else f"{number:,} {thing}s"


def _paragraphs(text: str) -> list[str]:
    return [part for part in text.split("\n\n") if part.strip()]


def _footer() -> str:
    today = datetime.now(UTC).date().isoformat()
    return (
        f"Made on {today} by actstore {version('actstore')}, torch {version('torch')},"
        f" Python {platform.python_version()}, {platform.system()}"
        f" {platform.machine()}."
    )


def _which_rows(runs: Sequence[RunData]) -> str:
    """Return which rows the runs were evaluated on."""
    evaluations = [run.evaluation for run in runs]
    splits = {evaluation.split for evaluation in evaluations}
    filtered = {evaluation.filter is not None for evaluation in evaluations}
    if len(splits) > 1 or len(filtered) > 1:
        return "the rows of its evaluation, which are not the same for all runs"
    split = splits.pop().replace("_", "-")
    return f"{split} rows{' that its filter keeps' if filtered.pop() else ''}"
