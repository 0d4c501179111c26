"""Tables of the report, as HTML: the effect on the language model, and what is needed
to make it all again.
"""

from __future__ import annotations

import html
from collections.abc import Sequence

from actstore.store.store import Store
from trainer.runs import published_names
from trainer.runs.run_data import RunData, short, shown

MODEL_HEAD = (
    "run",
    "layer",
    "CE clean",
    "CE SAE",
    "CE zero",
    "CE mean",
    "recovered (zero)",
    "recovered (mean)",
    "KL",
)


def table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A table in a box of its own that scrolls; every cell is escaped."""
    top = "".join(f"<th scope=col>{html.escape(name)}</th>" for name in head)
    rows = "".join(
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in line) + "</tr>"
        for line in lines
    )
    return (
        "<div"
        f" class=box><table><thead><tr>{top}</tr></thead><tbody>{rows}</tbody></table></div>"
    )


def model_table(runs: Sequence[RunData]) -> str:
    """Cross-entropy and KL by run and layer; empty where no run was evaluated with its
    language model.
    """
    lines = []
    for run in runs:
        pooled = run.evaluation.model_pooled
        for m in (*run.evaluation.model, *([pooled] if pooled else [])):
            values = (
                m.ce_clean,
                m.ce_sae,
                m.ce_zero,
                m.ce_mean,
                m.recovered_zero,
                m.recovered_mean,
                m.kl,
            )
            lines.append(
                [run.name, short(m.site), *(shown(value, ".4f") for value in values)]
            )
    return table(MODEL_HEAD, lines) if lines else ""


def reproduce(runs: Sequence[RunData], store: Store) -> str:
    """The store's content id and spec, and each run's, with the calls that take them."""
    spec = published_names.harvest(store.manifest.spec).to_json()
    first = (
        f"<p>Store <code>{html.escape(published_names.name(store.url))}</code>, content"
        f" id <code>{html.escape(store.manifest.content_id)}</code>. The same spec on"
        " the same kind of machine makes the same bytes: <code>actstore.harvest(spec,"
        " out)</code>.</p>"
    )
    parts = [first, _details("spec of the store", spec)]
    parts += [
        _details(f"run {run.name}", published_names.record(run.record).to_json())
        for run in runs
    ]
    parts.append(
        "<p>A run folder keeps its own spec: <code>trainer train --spec RUN/spec.json"
        " --out NEW</code> trains it again, <code>trainer eval NEW</code> evaluates it,"
        " <code>trainer report NEW</code> makes this page.</p>"
    )
    return "".join(parts)


def other_stores(runs: Sequence[RunData], store: Store) -> str:
    """A warning where runs were evaluated on another store than the one shown;
    otherwise nothing.
    """
    names = [
        run.name
        for run in runs
        if run.evaluation.content_id != store.manifest.content_id
    ]
    if not names:
        return ""
    return (
        "<p role=note><b>Evaluated on another store, so compare with care:</b>"
        f" {html.escape(', '.join(names))}.</p>"
    )


def _details(title: str, text: str) -> str:
    return f"<details><summary>{html.escape(title)}</summary><pre>{html.escape(text)}</pre></details>"
