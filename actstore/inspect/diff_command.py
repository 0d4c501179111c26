"""The command `actstore diff`.

Importing this loads typer only, so that help comes at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from actstore.console.cli_options import AsJson, Command
from actstore.errors import ActstoreError

if TYPE_CHECKING:
    from actstore.inspect.diff_stores import Shared, SiteValues, StoreDiff

_TROUBLE = 2  # as of the command `diff`


class DiffCommand(Command):
    """A command whose exit code 1 is a result, so that errors have another one."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except ActstoreError as error:
            typer.echo(f"error: {error}", err=True)
            raise typer.Exit(_TROUBLE) from error


def diff_command(
    a: Annotated[str, typer.Argument(metavar="A", help="A store.")],
    b: Annotated[str, typer.Argument(metavar="B", help="Another one.")],
    rows: Annotated[
        int,
        typer.Option(
            metavar="N", min=1, help="Rows of each site to compare, digests differing."
        ),
    ] = 1024,
    seed: Annotated[
        int, typer.Option(metavar="N", min=0, help="Which rows are compared.")
    ] = 0,
    as_json: AsJson = False,
) -> None:
    """Say in what two stores differ: tokens, sites, rows, settings and values.

    Rows are matched by tokens, sequence and position, whatever the layouts.

    Exit code 0 if nothing differs, 1 if something does, 2 if a store cannot be read.
    """
    from actstore.inspect.diff_stores import diff

    found = diff(a, b, rows=rows, seed=seed)
    if as_json:
        typer.echo(_json(found))
    else:
        for line in _lines(found):
            typer.echo(line)
    if not found.same:
        raise typer.Exit(1)


def _json(found: StoreDiff) -> str:
    """Return a diff as JSON."""
    import json

    from actstore.console.cli_output import json_number

    values = [
        {**site._asdict(), "largest": json_number(site.largest)}
        for site in found.values
    ]
    every = {
        "same": found.same,
        **found._asdict(),
        "fields": [field._asdict() for field in found.fields],
        "sites": found.sites._asdict(),
        "sequences": found.sequences._asdict(),
        "rows": found.rows._asdict(),
        "values": values,
    }
    return json.dumps(every, indent=1, allow_nan=False)


def _lines(found: StoreDiff) -> list[str]:
    """Return a diff as lines for people."""
    from actstore.console.short_lists import first_and_last

    part_of_a, part_of_b = _part_of(found)
    lines = [
        f"A            {found.a}  {found.content_ids[0][:16]}{part_of_a}",
        f"B            {found.b}  {found.content_ids[1][:16]}{part_of_b}",
    ]
    sites = f"{len(found.sites.both)} in both"
    for name, alone in (("A", found.sites.only_a), ("B", found.sites.only_b)):
        if alone:
            sites += f"; only in {name}: {first_and_last(alone)}"
    lines.append(f"sites        {sites}")
    lines.append(f"sequences    {_counts(found.sequences)}")
    lines.append(f"rows         {_counts(found.rows)}")
    lines += [f"{'':<13}{field.path}: {field.a} | {field.b}" for field in found.fields]
    lines += [f"{'':<13}{_site_line(site)}" for site in found.values]
    _head(lines, 5, "settings" if found.fields else "values")
    if found.fields:
        _head(lines, 5 + len(found.fields), "values")
    lines.append("no difference" if found.same else "they differ")
    return lines


def _part_of(found: StoreDiff) -> tuple[str, str]:
    """Return words that say which store each is a part of, if it is one."""
    words = []
    for parent, other, name in zip(
        found.parents, reversed(found.content_ids), ("B", "A"), strict=True
    ):
        whole = name if parent == other else f"{parent}"[:16]
        words.append("" if parent is None else f", a part of {whole}")
    return words[0], words[1]


def _head(lines: list[str], i: int, name: str) -> None:
    """Put a name before line i, if there is one."""
    if i < len(lines):
        lines[i] = f"{name:<13}{lines[i][13:]}"


def _counts(shared: Shared) -> str:
    """Return how many are in both and in one alone, as words."""
    text = f"{shared.both:,} in both"
    if shared.only_a:
        text += f", {shared.only_a:,} only in A"
    if shared.only_b:
        text += f", {shared.only_b:,} only in B"
    return text


def _site_line(site: SiteValues) -> str:
    """Return how far a site's values agree, as words."""
    if site.same_units == site.units:
        return f"{site.site}: the same bytes in all {site.units} units"
    text = f"{site.site}: "
    if site.same_units:
        text += f"the same bytes in {site.same_units} of {site.units} units; "
    if site.rows == site.equal_rows:
        return text + f"the same values in all {site.rows:,} rows compared"
    return text + (
        f"{site.equal_rows:,} of {site.rows:,} rows compared are equal, relative error"
        f" {site.relative:.3g}, largest difference {site.largest:.3g}"
    )
