"""Makes the report's tables, and says what is needed to make it all again."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

from actstore.figures.layer_order import short_site
from actstore.store.store import Store
from trainer.analysis.seed_groups import kind_of_run, sparsity_of, spec_of
from trainer.reports.front_of_runs import on_the_front
from trainer.runs import published_names
from trainer.runs.machine_record import read_machine
from trainer.runs.run_data import (
    MODEL_FIGURES,
    RunData,
    model_effects,
    model_figures,
    shown_figure,
)

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup

# What identifies a run and what is judged come first, so that they are seen at once.
RUN_HEAD = (
    "run",
    "kind",
    "latents",
    "L0",
    "FVU",
    "dead",
    "MSE",
    "suppression",
    "L1",
    "L1 × decoder norms",
    "FVU, mean of layers",
    "rescaling",
    "asked for",
    "learning rate",
    "rows",
    "seed",
)
_MODEL_HEAD = ("run", "layer", *MODEL_FIGURES)


class Cell(NamedTuple):
    """A cell of a table.

    Attributes:
        text: What it shows.
        value: What it is sorted by; None for its text, empty where it has none.
        classes: Its classes on the page.
        title: What the pointer shows.
    """

    text: str
    value: str | None = None
    classes: str = ""
    title: str = ""


def run_table(runs: Sequence[RunData]) -> Markup:
    """Return a line for each run: what it is, and its pooled metrics.

    L0 and FVU of the runs on the front (`on_the_front`) are marked.
    """
    lines = []
    for run, is_best in zip(runs, on_the_front(runs), strict=True):
        record = run.record
        pooled = run.evaluation.pooled
        best = "best" if is_best else ""
        line = [
            Cell(run.name, classes="text", title=run.name),
            Cell(kind_of_run(run), classes="text"),
            _count(record.n_latents),
            _figure(pooled.l0, best),
            _figure(pooled.fvu, best),
            _count(run.evaluation.dead),
            _figure(pooled.mse),
            _figure(pooled.suppression),
            _figure(pooled.l1),
            _figure(pooled.l1_decoder),
            _figure(run.evaluation.fvu_layer_mean),
            Cell(record.rescale, classes="text"),
            _figure(sparsity_of(run)),
            _figure(math.nan if record.lr is None else record.lr),
            _count(record.rows),
            _count(record.seed),
        ]
        lines.append(line)
    return _table(RUN_HEAD, lines)


def model_table(runs: Sequence[RunData]) -> Markup | None:
    """Return CE and KL by run and layer; None where no language model was run."""
    lines = []
    for run in runs:
        for effect in model_effects(run.evaluation):
            figures = model_figures(effect)
            names = [
                Cell(run.name, classes="text", title=run.name),
                Cell(short_site(effect.site), classes="text"),
            ]
            lines.append([*names, *(Cell(text, _value(text)) for text in figures)])
    return _table(_MODEL_HEAD, lines) if lines else None


def reproduce(runs: Sequence[RunData], store: Store) -> Markup:
    """Return the specs of the store and of each run, with the calls that take them."""
    of_runs = []
    for run in runs:
        spec = spec_of(run)
        record = published_names.record(run.record).to_json()
        if spec is not None:
            named = spec.model_copy(update={"store": published_names.name(spec.store)})
            record = named.to_json()
        machine = read_machine(run.url)
        about = "" if machine is None else machine.sentence()
        of_runs.append({"name": run.name, "spec": record, "machine": about})
    return _render(
        "provenance.html",
        store=published_names.name(store.url),
        content_id=store.manifest.content_id,
        harvest=published_names.harvest(store.manifest.spec).to_json(),
        runs=of_runs,
    )


def other_stores(runs: Sequence[RunData], store: Store) -> str:
    """Return a warning where runs were evaluated on another store than the one shown."""
    shown_id = store.manifest.content_id
    names = [run.name for run in runs if run.evaluation.content_id != shown_id]
    if not names:
        return ""
    return f"Evaluated on another store, so compare with care: {', '.join(names)}."


@cache
def templates() -> Environment:
    """Return what reads the report's templates; it escapes all text."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    return Environment(
        loader=PackageLoader("trainer.reports", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
    )


def _table(head: Sequence[str], lines: Sequence[Sequence[Cell]]) -> Markup:
    return _render("tables.html", head=head, lines=lines)


def _render(name: str, **values: object) -> Markup:
    from markupsafe import Markup

    # The template has escaped what it was given.
    return Markup(templates().get_template(name).render(**values))  # noqa: S704


def _figure(value: float, classes: str = "") -> Cell:
    known = "" if math.isnan(value) else f"{value:.9g}"
    return Cell(shown_figure(value), known, classes)


def _count(value: int) -> Cell:
    return Cell(f"{value:,}", str(value))


def _value(text: str) -> str:
    return "" if text == "–" else text
