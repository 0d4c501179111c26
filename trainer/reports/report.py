"""Writes the report: what a store and the evaluations of runs say, as one page."""

from __future__ import annotations

import html
import math
import os
from collections.abc import Sequence

from actstore import arguments
from actstore.arguments import checked, optional
from actstore.format.storage import Storage
from actstore.model.checkpoint_files import confirm_code
from actstore.store.store import Store
from trainer.analysis import figures
from trainer.analysis.latent_examples import Example, compute_examples
from trainer.errors import RunError
from trainer.evaluation import metrics_of_rows
from trainer.evaluation.metric_definitions import layer_shares, spread
from trainer.reports.page import Section, page
from trainer.reports.tables import model_table, other_stores, reproduce, run_table
from trainer.runs import published_names
from trainer.runs.notes import Tell, as_warning
from trainer.runs.run_data import RunData, read_run, short_site
from trainer.runs.run_store import store_of
from trainer.runs.trained_sae import load

TITLE = "Sparse autoencoders across layers"
N_LATENTS = 12


@checked(
    runs=arguments.folders,
    out=arguments.folder,
    store=optional(arguments.folder),
    latents=arguments.count_from_0,
    title=arguments.text,
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
    out = os.fspath(out)
    store = arguments.path_or_none(store)
    if not urls:
        raise RunError("which runs? give at least one run folder")
    folder, name = _folder_and_name(out)
    stores = {url: store_of(url, load(url).record, store) for url in urls}
    # All stores are opened before any run is evaluated, which may take long.
    first_store = stores[urls[0]].store
    if trust_remote_code:
        confirm_code(
            first_store.manifest.spec.model, trust_remote_code, first_store.url
        )
    data = [_evaluated(url, stores[url].store) for url in urls]
    best = min(data, key=_pooled_fvu)
    examples = compute_examples(
        load(best.url),
        stores[best.url].store,
        best.firings,
        best.rows,
        latents,
        trust_remote_code=trust_remote_code,
    )
    sections = _sections(data, first_store, best, examples)
    text = page(title, _lead(data, first_store), sections)
    Storage(folder).put(name, text.encode())
    for run_store in stores.values():
        if run_store.note is not None:
            tell(run_store.note)
    return out


def _pooled_fvu(run: RunData) -> float:
    """Return what runs are compared by; one that has no FVU comes last."""
    fvu = run.evaluation.pooled.fvu
    return math.inf if math.isnan(fvu) else fvu


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


def _lead(runs: Sequence[RunData], store: Store) -> str:
    """Return what the page is about: the model, the corpus, the rows, the store."""
    manifest = store.manifest
    model = html.escape(published_names.name(manifest.spec.model.name))
    corpus = html.escape(published_names.name(manifest.spec.corpus.name))
    n_held_out = manifest.n_rows - manifest.n_train_rows
    saes = "1 SAE" if len(runs) == 1 else f"{len(runs)} SAEs"
    return (
        f"<p>{saes} trained on {len(runs[0].record.sites)} sites of"
        f" <b>{model}</b> over {corpus}: {manifest.n_train_rows:,} training rows per"
        f" site, {n_held_out:,} held out. Every metric of a run is on"
        f" {_which_rows(runs)}, in the units of the original activations. Store"
        f" <code>{html.escape(manifest.content_id[:16])}</code>.</p>"
        f"{other_stores(runs, store)}"
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


def _sections(
    runs: Sequence[RunData], store: Store, best: RunData, examples: list[Example]
) -> list[Section]:
    """Return the page's parts; `best` is the run whose latents are shown."""
    sections = [
        Section(
            "Norm by layer",
            "Mean L2 norm of the activations over training rows, from the store's"
            " manifest; the band is from the 5 % to the 95 % quantile.",
            figure=figures.norms(store, store.sites),
        ),
        Section(
            "Runs",
            "Pooled over layers. FVU = Σ‖x − x̂‖² / Σ‖x − μ<sub>l</sub>‖² with"
            " μ<sub>l</sub> the layer's stored mean (with a filter, that of the rows it"
            " keeps); dead latents never fired on the rows evaluated.",
            body=run_table(runs),
        ),
        *_metric_sections(runs),
    ]
    model = model_table(runs)
    if model:
        section = Section(
            "Effect on the language model",
            "Cross-entropy and KL(clean ‖ patched) in nats per token, one site replaced"
            " at a time; special tokens keep their activations. Recovered ="
            " (CE<sub>ablated</sub> − CE<sub>SAE</sub>) / (CE<sub>ablated</sub> −"
            " CE<sub>clean</sub>).",
            body=model,
        )
        sections.append(section)
    sections += [
        Section(
            "Density of the latents",
            "Share of rows on which a latent fires, over all layers; −10 stands for"
            " never.",
            figure=figures.density(runs),
        ),
        Section(
            "Training",
            "Each point is the mean since the one before.",
            figure=figures.losses(runs),
        ),
        *_latent_sections(best, examples),
        Section(
            "How to make it again",
            "What this page was made from.",
            body=reproduce(runs, store),
        ),
    ]
    return sections


def _metric_sections(runs: Sequence[RunData]) -> list[Section]:
    """Return the figures of the metrics, pooled and by layer."""
    sections = [
        Section(
            "FVU against L0",
            "Diamonds: pooled. Dots: the layers of that run.",
            figure=figures.pareto(runs),
        )
    ]
    by = figures.curve_of(runs)
    if by is not None:
        section = Section(
            f"FVU against L0 by {by}",
            f"A colour per {by}, a point per run, pooled.",
            figure=figures.curves(runs, by),
        )
        sections.append(section)
    by_layer = {
        "fvu": (
            "FVU",
            (
                "Averages over layers mislead: a rescaling moves error from some layers to"
                " others."
            ),
        ),
        "l0": ("L0", "Mean number of latents above 0."),
        "l1": ("L1", "Mean sum of the latents, in original units."),
        "mse": ("MSE", "Mean of ‖x − x̂‖², summed over d."),
    }
    for metric, (label, text) in by_layer.items():
        figure = figures.by_layer(runs, metric, label)
        sections.append(Section(f"{label} by layer", text, figure=figure))
    return sections


def _latent_sections(best: RunData, examples: list[Example]) -> list[Section]:
    """Return what is said of the latents of one run over layers."""
    widths = spread(layer_shares(best.firings, best.rows)).numpy()
    frequency = (best.firings.sum(dim=0).double() / best.rows.sum()).numpy()
    return [
        Section(
            "Latents over layers",
            f"Effective number of layers of each latent of <b>{html.escape(best.name)}"
            "</b> (the run of lowest pooled FVU): exp of the entropy of its firings over"
            " layers, p<sub>l</sub> ∝ firings / rows.",
            figure=figures.spreads(widths, frequency, len(best.record.sites)),
        ),
        Section(
            "Cross-layer latents",
            "The latents of widest spread among those of middling frequency, with the"
            " held-out contexts where they fire most and the layer they fired at; the"
            " variance is that of a latent over the layers of one token, mean over"
            " tokens, in original units.",
            body=_examples(examples, best),
        ),
    ]


def _examples(examples: list[Example], run: RunData) -> str:
    if not examples:
        return "<p>No latent fires.</p>"
    names = [short_site(site) for site in run.record.sites]
    return "".join(_example(example, names) for example in examples)


def _example(example: Example, names: list[str]) -> str:
    """Return one latent as HTML: its shares as bars, then its contexts."""
    # With shares of 0.1 and 0.4 the bars are 25 % and 100 % of the height.
    highest = max(example.shares)
    bars = []
    for name, share in zip(names, example.shares, strict=True):
        label = html.escape(name.split()[0])
        bars.append(
            f"<span class=bar title='layer {html.escape(name)}: {share:.0%}'>"
            f"<i style='height:{100 * share / highest:.0f}%'></i><b>{label}</b></span>"
        )
    contexts = []
    for context in example.contexts:
        site = html.escape(short_site(context.site))
        contexts.append(
            f"<li><span class=layer>{site} · {context.value:.2f}</span> "
            f"<code>{_visible(context.before)}<mark>{_visible(context.token)}</mark>"
            f"{_visible(context.after)}</code></li>"
        )
    return (
        f"<article><h3>Latent {example.latent}</h3><p>density {example.frequency:.2e},"
        f" {example.layers:.2f} effective layers, variance over layers"
        f" {example.variance:.3g}</p><div class=bars role=img aria-label='share of"
        f" firings by layer'>{''.join(bars)}</div><ol>{''.join(contexts)}</ol></article>"
    )


def _visible(text: str) -> str:
    """Return text as HTML in which line ends and empty tokens can be seen."""
    return html.escape(text).replace("\n", "⏎") or "␣"
