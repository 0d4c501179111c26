"""Makes the report's tables as HTML, and says what is needed to make it all again."""

from __future__ import annotations

import html
from collections.abc import Sequence

from actstore.store.store import Store
from trainer.runs import published_names
from trainer.runs.run_data import (
    MODEL_FIGURES,
    RunData,
    model_effects,
    model_figures,
    short_site,
    shown_figure,
)

_RUN_HEAD = (
    "run",
    "kind",
    "latents",
    "rescale",
    "rows",
    "FVU",
    "FVU, mean of layers",
    "L0",
    "L1",
    "L1, decoder-weighted",
    "MSE",
    "suppression",
    "dead",
)
_MODEL_HEAD = ("run", "layer", *MODEL_FIGURES)


def table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Return a table in a box of its own that scrolls; every cell is escaped."""
    head_cells = "".join(f"<th scope=col>{html.escape(name)}</th>" for name in head)
    rows = []
    for line in lines:
        cells = "".join(f"<td>{html.escape(cell)}</td>" for cell in line)
        rows.append(f"<tr>{cells}</tr>")
    return (
        f"<div class=box><table><thead><tr>{head_cells}</tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def run_table(runs: Sequence[RunData]) -> str:
    """Return a line for each run: what it is, and its pooled metrics."""
    lines = []
    for run in runs:
        record = run.record
        pooled = run.evaluation.pooled
        figures = (
            pooled.fvu,
            run.evaluation.fvu_layer_mean,
            pooled.l0,
            pooled.l1,
            pooled.l1_decoder,
            pooled.mse,
            pooled.suppression,
        )
        line = [
            run.name,
            record.sae.kind,
            f"{record.n_latents:,}",
            record.rescale,
            f"{record.rows:,}",
            *map(shown_figure, figures),
            f"{run.evaluation.dead:,}",
        ]
        lines.append(line)
    return table(_RUN_HEAD, lines)


def model_table(runs: Sequence[RunData]) -> str:
    """Return CE and KL by run and layer.

    Empty where no run was evaluated with its language model.
    """
    lines = []
    for run in runs:
        for effect in model_effects(run.evaluation):
            figures = model_figures(effect)
            lines.append([run.name, short_site(effect.site), *figures])
    return table(_MODEL_HEAD, lines) if lines else ""


def reproduce(runs: Sequence[RunData], store: Store) -> str:
    """Return the specs of the store and of each run, with the calls that take them."""
    store_name = html.escape(published_names.name(store.url))
    content_id = html.escape(store.manifest.content_id)
    spec = published_names.harvest(store.manifest.spec).to_json()
    parts = [
        (
            f"<p>Store <code>{store_name}</code>, content id <code>{content_id}</code>. The"
            " same spec on the same kind of machine makes the same bytes:"
            " <code>actstore.harvest(spec, out)</code>.</p>"
        ),
        _details("spec of the store", spec),
    ]
    for run in runs:
        record = published_names.record(run.record).to_json()
        parts.append(_details(f"run {run.name}", record))
    # The record above is for reading; only spec.json is what `--spec` takes.
    parts.append(
        "<p>A run folder keeps its own spec: <code>trainer train --spec RUN/spec.json"
        " --out NEW</code> trains it again, <code>trainer eval NEW</code> evaluates it,"
        " <code>trainer report NEW</code> makes this page.</p>"
    )
    return "".join(parts)


def other_stores(runs: Sequence[RunData], store: Store) -> str:
    """Return a warning where runs were evaluated on another store than the one shown."""
    shown_id = store.manifest.content_id
    names = [run.name for run in runs if run.evaluation.content_id != shown_id]
    if not names:
        return ""
    return (
        "<p role=note><b>Evaluated on another store, so compare with care:</b>"
        f" {html.escape(', '.join(names))}.</p>"
    )


def _details(title: str, text: str) -> str:
    """Return text that is folded away under its title."""
    return (
        f"<details><summary>{html.escape(title)}</summary>"
        f"<pre>{html.escape(text)}</pre></details>"
    )
