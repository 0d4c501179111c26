"""The parts of the report, in their order."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from actstore.figures.page import Section
from actstore.figures.table import Table
from actstore.store.norms_of_sites import compute_norms, plot_norms
from actstore.store.store import Store
from trainer.analysis.by_layer import compute_by_layer
from trainer.analysis.curves import compute_curves
from trainer.analysis.densities import compute_densities, plot_densities
from trainer.analysis.evidence import figures_of
from trainer.analysis.fronts import compute_fronts, plot_fronts
from trainer.reports import run_figures
from trainer.reports.tables import model_table, reproduce, run_table
from trainer.runs.run_data import RunData

NO_EFFECTS = (
    "No language model was run. `trainer eval RUN --ce` measures what the SAE does to"
    " the model's predictions, and this page then shows it."
)


def sections_of(
    runs: Sequence[RunData],
    store: Store,
    shown: RunData,
    cards: Markup,
    evidence: Sequence[Table],
) -> list[Section]:
    """Return the parts of a page.

    Args:
        runs: Evaluated runs.
        store: The store of the first one.
        shown: The run whose latents are shown.
        cards: Its latents, as markup.
        evidence: Tables of other analyses, in the order they are shown in.
    """
    return [
        _norms(store),
        _runs(runs),
        *_fronts(runs),
        *_by_layer(runs),
        _effects(runs),
        *_curves(runs),
        _densities(runs),
        *(_evidence(table, number) for number, table in enumerate(evidence)),
        _latents(shown, cards),
        Section(
            "again",
            "How to make it again",
            "What this page was made from.",
            body=reproduce(runs, store),
        ),
    ]


def _norms(store: Store) -> Section:
    table = compute_norms(store)
    return Section("norms", table.title, table.text, plot_norms(table), table)


def _runs(runs: Sequence[RunData]) -> Section:
    return Section(
        "runs",
        "Runs",
        "Pooled over layers, in the units of the original activations. FVU ="
        " Σ‖x − x̂‖² / Σ‖x − μ‖² with μ the layer's stored mean (with a filter, that of"
        " the rows it keeps); dead latents never fired on the rows evaluated. Marked:"
        " runs on the front, to which no other run has both lower L0 and lower FVU."
        " A click on a heading sorts.",
        body=run_table(runs),
    )


def _fronts(runs: Sequence[RunData]) -> list[Section]:
    table = compute_fronts(runs)
    drawings = [run_figures.scatter(runs)]
    # One run, or one point a colour, says no more than the scatter does.
    if len(runs) > 1:
        drawings += plot_fronts(table)
    text = (
        "Large points: all layers of a run pooled. Small points: its layers. Lower and"
        " further left is better; runs are compared at the same L0 only.\n\n"
        + table.text
    )
    return [Section("fronts", table.title, text, drawings, table)]


def _by_layer(runs: Sequence[RunData]) -> list[Section]:
    drawings = run_figures.by_layer(runs)
    if not drawings:
        return []
    table = compute_by_layer(runs)
    return [Section("by-layer", table.title, table.text, drawings, table)]


def _effects(runs: Sequence[RunData]) -> Section:
    title = "Effect on the language model"
    body = model_table(runs)
    if body is None:
        return Section("effects", title, NO_EFFECTS)
    text = (
        "Cross-entropy and KL(clean ‖ patched) in nats per token, one site replaced at a"
        " time; special tokens keep their activations. Recovered = (CE of the ablated"
        " model − CE with the SAE) / (CE of the ablated model − CE of the clean one)."
    )
    return Section("effects", title, text, body=body)


def _curves(runs: Sequence[RunData]) -> list[Section]:
    drawings = run_figures.curves(runs)
    if not drawings:
        return []
    table = compute_curves(runs)
    text = "Each point is the mean since the one before, on rows of training."
    return [Section("training", "Over training", text, drawings, table)]


def _densities(runs: Sequence[RunData]) -> Section:
    table = compute_densities(runs)
    return Section("density", table.title, table.text, plot_densities(table), table)


def _evidence(table: Table, number: int) -> Section:
    key = f"evidence-{number}"
    return Section(key, table.title, table.text, figures_of(table), table)


def _latents(shown: RunData, cards: Markup) -> Section:
    text = (
        f"Latents of {shown.name}: of the runs on the front, the one in the middle."
        " Shown are those that write most, relative to the norm of their layer, and"
        " whose strongest contexts agree; no context twice. `trainer explore RUN` shows"
        " every latent of a run."
    )
    return Section("latents", "Latents", text, body=cards)
