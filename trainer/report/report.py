"""The report: what the runs' evaluations and a store say, as one page."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence

from actstore.format.storage import Storage
from actstore.model.checkpoint_files import confirm_code
from actstore.store.store import Store
from trainer.analysis import figures
from trainer.analysis.latent_examples import Example, compute_examples
from trainer.errors import RunError
from trainer.evaluate import row_metrics
from trainer.evaluate.metrics import layer_shares, spread
from trainer.report.page import Section, page
from trainer.report.tables import model_table, other_stores, reproduce, table
from trainer.runs import published_names
from trainer.runs.run_data import RunData, read_run, short, shown
from trainer.runs.run_store import store_of
from trainer.runs.trained_sae import load


def write_report(
    runs: Sequence[str],
    out: str,
    store: str | None,
    n_latents: int,
    title: str,
    *,
    trust_remote_code: bool = False,
) -> list[str]:
    """Write the page, about the first run's store; notes on where `store` is given and
    is another one than a run's.

    Runs that are not evaluated yet are, on held-out rows. trust_remote_code: run code
    that the store keeps with its tokenizer, where the harvest was told so.
    """
    if not runs:
        raise RunError("which runs? give at least one run folder")
    folder, name = _split(out)
    stores = {run: store_of(run, load(run).record, store) for run in runs}
    opened = stores[runs[0]].store
    if trust_remote_code:
        confirm_code(opened.manifest.spec.model, trust_remote_code, opened.url)
    data = [_evaluated(run, stores[run].store) for run in runs]
    best = min(data, key=_pooled_fvu)
    about = stores[best.url].store
    examples = compute_examples(
        load(best.url),
        about,
        best.firings,
        best.rows,
        n_latents,
        trust_remote_code=trust_remote_code,
    )
    text = page(title, _lead(data, opened), _sections(data, opened, best, examples))
    Storage(folder).put(name, text.encode())
    return [one.note for one in stores.values() if one.note is not None]


def _pooled_fvu(run: RunData) -> float:
    """To compare runs by: one that has none comes last."""
    fvu = run.evaluation.pooled.fvu
    return math.inf if math.isnan(fvu) else fvu


def _split(url: str) -> tuple[str, str]:
    """Folder and name of a path or URL. Raises RunError where either is missing."""
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
        row_metrics.write(run, *row_metrics.evaluate(load(run), store))
    return read_run(run)


def _lead(runs: Sequence[RunData], store: Store) -> str:
    m = store.manifest
    kinds = {(run.evaluation.split, run.evaluation.filter is not None) for run in runs}
    which = "the rows of its evaluation, which are not the same for all runs"
    if len(kinds) == 1:
        split, filtered = kinds.pop()
        which = (
            f"{split.replace('_', '-')}"
            f" rows{' that its filter keeps' if filtered else ''}"
        )
    return (
        f"<p>{len(runs)} SAE{'s' if len(runs) > 1 else ''} trained on"
        f" {len(runs[0].record.sites)} sites of "
        f"<b>{html.escape(published_names.name(m.spec.model.name))}</b> over"
        f" {html.escape(published_names.name(m.spec.corpus.name))}: {m.n_train_rows:,}"
        " training rows "
        f"per site, {m.n_rows - m.n_train_rows:,} held out. Every metric of a run is on"
        f" {which}, in the units of the "
        "original activations. Store"
        f" <code>{html.escape(m.content_id[:16])}</code>.</p>{other_stores(runs, store)}"
    )


def _sections(
    runs: Sequence[RunData], store: Store, best: RunData, examples: list[Example]
) -> list[Section]:
    width = spread(layer_shares(best.firings, best.rows)).numpy()
    frequency = (best.firings.sum(dim=0).double() / best.rows.sum()).numpy()
    model, by = model_table(runs), figures.curve_of(runs)
    return [
        Section("Norm by layer", "Mean L2 norm of the activations over training rows, from the store's manifest; "
                "the band is from the 5 % to the 95 % quantile.", figure=figures.norms(store, store.sites)),
        Section("Runs", "Pooled over layers. FVU = Σ‖x − x̂‖² / Σ‖x − μ<sub>l</sub>‖² with μ<sub>l</sub> the layer's stored "
                "mean (with a filter, that of the rows it keeps); dead latents never fired on the rows evaluated.", body=_table(runs)),
        Section("FVU against L0", "Diamonds: pooled. Dots: the layers of that run.", figure=figures.pareto(runs)),
        *([Section(f"FVU against L0 by {by}", f"A colour per {by}, a point per run, pooled.", figure=figures.curves(runs, by))]
          if by else []),
        Section("FVU by layer", "Averages over layers mislead: a rescaling moves error from some layers to others.",
                figure=figures.by_layer(runs, "fvu", "FVU")),
        Section("L0 by layer", "Mean number of latents above 0.", figure=figures.by_layer(runs, "l0", "L0")),
        Section("L1 by layer", "Mean sum of the latents, in original units.", figure=figures.by_layer(runs, "l1", "L1")),
        Section("MSE by layer", "Mean of ‖x − x̂‖², summed over d.", figure=figures.by_layer(runs, "mse", "MSE")),
        *([Section("Effect on the language model", "Cross-entropy and KL(clean ‖ patched) in nats per token, one site replaced "
                   "at a time; special tokens keep their activations. Recovered = (CE<sub>ablated</sub> − CE<sub>SAE</sub>) / "
                   "(CE<sub>ablated</sub> − CE<sub>clean</sub>).", body=model)] if model else []),
        Section("Density of the latents", "Share of rows on which a latent fires, over all layers; −10 stands for never.",
                figure=figures.density(runs)),
        Section("Training", "Each point is the mean since the one before.", figure=figures.losses(runs)),
        Section("Latents over layers", f"Effective number of layers of each latent of <b>{html.escape(best.name)}</b> (the "
                "run of lowest pooled FVU): exp of the entropy of its firings over layers, p<sub>l</sub> ∝ firings / rows.",
                figure=figures.spreads(width, frequency, len(best.record.sites))),
        Section("Cross-layer latents", "The latents of widest spread among those of middling frequency, with the held-out "
                "contexts where they fire most and the layer they fired at; the variance is that of a latent over the layers "
                "of one token, mean over tokens, in original units.", body=_examples(examples, best)),
        Section("How to make it again", "What this page was made from.", body=reproduce(runs, store)),
    ]  # fmt: skip


def _table(runs: Sequence[RunData]) -> str:
    head = ("run", "kind", "latents", "rescale", "rows", "FVU", "FVU, mean of layers", "L0", "L1",
            "L1, decoder-weighted", "MSE", "suppression",
            "dead")  # fmt: skip
    lines = []
    for run in runs:
        one, spec = run.evaluation.pooled, run.record
        values = (
            one.fvu,
            run.evaluation.fvu_layer_mean,
            one.l0,
            one.l1,
            one.l1_decoder,
            one.mse,
            one.suppression,
        )
        cells = [
            run.name,
            spec.sae.kind,
            f"{spec.n_latents:,}",
            spec.rescale,
            f"{spec.rows:,}",
        ]
        lines.append(
            [*cells, *(shown(value) for value in values), f"{run.evaluation.dead:,}"]
        )
    return table(head, lines)


def _examples(examples: list[Example], run: RunData) -> str:
    names = [short(site) for site in run.record.sites]
    return (
        "".join(_example(one, names) for one in examples) or "<p>No latent fires.</p>"
    )


def _example(one: Example, names: list[str]) -> str:
    bars = "".join(
        f"<span class=bar title='layer {html.escape(name)}: {share:.0%}'><i"
        f" style='height:{100 * share / max(one.shares):.0f}%'>"
        f"</i><b>{html.escape(name.split()[0])}</b></span>"
        for name, share in zip(names, one.shares, strict=True)
    )
    contexts = "".join(
        f"<li><span class=layer>{html.escape(short(c.site))} · {c.value:.2f}</span> "
        f"<code>{_shown(c.before)}<mark>{_shown(c.token)}</mark>{_shown(c.after)}</code></li>"
        for c in one.contexts
    )
    return (
        f"<article><h3>Latent {one.latent}</h3><p>density {one.frequency:.2e},"
        f" {one.layers:.2f} effective layers, variance over layers"
        f" {one.variance:.3g}</p><div class=bars role=img aria-label='share of firings"
        f" by layer'>{bars}</div><ol>{contexts}</ol></article>"
    )


def _shown(text: str) -> str:
    """Text for HTML with line ends and empty tokens made visible."""
    return html.escape(text).replace("\n", "⏎") or "␣"
