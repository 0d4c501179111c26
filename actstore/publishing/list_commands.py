"""The commands `actstore ls` and `actstore runs`.

Importing this loads typer only, so that help comes at once.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Any

import typer

from actstore.console.cli_options import AsJson, one_of
from actstore.console.printable import printable, shortened

if TYPE_CHECKING:
    from actstore.publishing.list_published import CatalogContents
    from schemas.catalog import Kind

WIDEST_CELL = 60  # characters of a cell of a table that are shown

NamePattern = Annotated[
    str | None,
    typer.Option(
        "--name", metavar="PATTERN", help="Of such names.", show_default="any"
    ),
]
ModelPattern = Annotated[
    str | None,
    typer.Option(
        "--model",
        metavar="PATTERN",
        help="Of such language models.",
        show_default="any",
    ),
]
SitePattern = Annotated[
    str | None,
    typer.Option(
        "--site", metavar="PATTERN", help="That have such a site.", show_default="any"
    ),
]


def ls_command(
    url: Annotated[
        str | None,
        typer.Argument(
            metavar="URL", help="A folder of stores.", show_default="the catalog"
        ),
    ] = None,
    name: NamePattern = None,
    model: ModelPattern = None,
    corpus: Annotated[
        str | None,
        typer.Option(metavar="PATTERN", help="Of such corpora.", show_default="any"),
    ] = None,
    site: SitePattern = None,
    as_json: AsJson = False,
) -> None:
    """List the stores that are published, or those at a URL and directly below it.

    In a PATTERN, * stands for anything: 'gpt2*'.
    """
    patterns = {"name": name, "model": model, "corpus": corpus, "site": site}
    if url is None:
        found = _found("store", patterns)
        _show(found, as_json=as_json, what="stores", columns=_store_columns)
        return
    from actstore.errors import SpecError

    given = [f"--{what}" for what, pattern in patterns.items() if pattern is not None]
    if given:
        raise SpecError(
            f"{', '.join(given)}: only what is published is filtered; leave out URL"
        )
    _ls_folder(url, as_json=as_json)


def _ls_folder(url: str, *, as_json: bool) -> None:
    from actstore.inspect.list_stores import stores

    entries = stores(url)
    if as_json:
        import json

        typer.echo(json.dumps([entry._asdict() for entry in entries], indent=1))
        return
    for entry in entries:
        typer.echo(printable(f"{entry.url}  {entry.text}"))
    if not entries:
        typer.echo(f"no stores at {url} or directly below it", err=True)


def runs_command(
    name: NamePattern = None,
    model: ModelPattern = None,
    site: SitePattern = None,
    sae: Annotated[
        str | None,
        typer.Option(metavar="PATTERN", help="Of such kinds.", show_default="any"),
    ] = None,
    sort: Annotated[
        str | None,
        typer.Option(
            metavar="METRIC",
            help="The best first: fvu, l0, ce-recovered or latents.",
            show_default="by name",
            autocompletion=one_of("fvu", "l0", "ce-recovered", "latents"),
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List the runs that are published, with the metrics of their evaluation.

    In a PATTERN, * stands for anything: '*topk'.
    """
    from actstore.errors import SpecError
    from actstore.publishing.list_published import METRICS, sorted_runs

    if sort is not None and sort not in METRICS:
        raise SpecError(f"--sort {sort}: wanted {', '.join(METRICS)}")
    patterns = {"name": name, "model": model, "site": site, "sae": sae}
    found = _found("run", patterns)
    if sort is not None:
        found = found._replace(publications=sorted_runs(found.publications, sort))
    _show(found, as_json=as_json, what="runs", columns=_run_columns)


def _found(kind: Kind, patterns: dict[str, str | None]) -> CatalogContents:
    from actstore.catalog.catalog import Catalog
    from actstore.publishing.list_published import list_published

    return list_published(Catalog(), kind, patterns)


def _show(found: CatalogContents, *, as_json: bool, what: str, columns: Any) -> None:
    """Print publications as a table, or as JSON; problems go to standard error."""
    for problem in found.problems:
        typer.echo(printable(f"note: {problem}"), err=True)
    if as_json:
        import json

        from actstore.publishing.list_published import as_json as values

        typer.echo(json.dumps(values(found.publications), indent=1))
        return
    if not found.publications:
        typer.echo(f"no such {what} are published in {found.catalog}", err=True)
        return
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    from actstore.inspect.inspect_commands import print_table

    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    rows = [columns(one) for one in found.publications]
    for title, value in rows[0].items():
        is_number = value.replace(",", "").replace(".", "").isdigit()
        table.add_column(title, justify="right" if is_number else "left")
    for row in rows:
        table.add_row(*(shortened(text, WIDEST_CELL) for text in row.values()))
    print_table(table)


def _store_columns(one: Any) -> dict[str, str]:
    """Return the texts of a store's row, by column."""
    record = one.record
    return {
        "name": _name(one),
        "model": record.model,
        "corpus": record.corpus or "-",
        "sites": _sites(record.sites),
        "rows": f"{record.rows:,}",
        "MB": f"{record.bytes / 1e6:,.1f}",
        "dtype": record.dtype,
        "published": _published(record),
        "content id": record.content_id[:12],
    }


def _run_columns(one: Any) -> dict[str, str]:
    """Return the texts of a run's row, by column."""
    record = one.record
    metrics = record.metrics
    fvu = l0 = recovered = None
    if metrics is not None:
        fvu = metrics.fvu
        l0 = metrics.l0
        recovered = metrics.ce_recovered
    return {
        "name": _name(one),
        "model": record.model,
        "SAE": record.sae,
        "latents": f"{record.n_latents:,}",
        "sites": _sites(record.sites),
        "FVU": _figure(fvu),
        "L0": _figure(l0),
        "CE rec.": _figure(recovered),
        "steps": f"{record.steps:,}",
        "store": record.store_content_id[:12] or "-",
        "published": _published(record),
    }


def _name(one: Any) -> str:
    """Return a name and its tags, or the content id where no tag leads to it."""
    return (
        one.name.removeprefix("catalog:")
        if len(one.tags) < 2
        else (f"{one.record.name}:{','.join(one.tags)}")
    )


def _sites(sites: tuple[str, ...]) -> str:
    return sites[0] if len(sites) == 1 else f"{len(sites)}"


def _figure(value: float | None) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.4g}"


def _published(record: Any) -> str:
    """Return who published something, and on which day."""
    day = record.when[:10]
    return f"{record.by} {day}" if record.by else str(day)
