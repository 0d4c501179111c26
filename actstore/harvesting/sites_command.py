"""`actstore sites`: what a model has to harvest. Importing this loads typer only."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from actstore.console.cli_options import AsJson, option
from actstore.harvesting.harvest_options import Model, Revision, TrustRemoteCode

if TYPE_CHECKING:
    from actstore.model.site_list import ModelSites

SCHEMA = "schemas.source:ModelSource"
FIELDS = {
    "model": "name",
    "revision": "revision",
    "trust_remote_code": "trust_remote_code",
}


def sites_command(
    model: Model,
    revision: Revision = None,
    trust_remote_code: TrustRemoteCode = False,
    as_json: AsJson = False,
) -> None:
    """The sites of a model: names for --sites, and the width of the vectors that each
    has. Runs it on a few tokens.
    """
    from actstore.model.load_model import load_model
    from actstore.model.site_list import list_sites
    from actstore.validation import validated
    from schemas.source import ModelSource

    values = {
        "name": model,
        "revision": revision,
        "trust_remote_code": trust_remote_code or None,
    }
    given = {path: value for path, value in values.items() if value is not None}
    names = {path: option(name) for name, path in FIELDS.items()}
    loaded = load_model(validated(ModelSource, given, "model", names))
    found = list_sites(loaded)
    if as_json:
        import json

        sites = [site._asdict() for site in found.sites]
        typer.echo(json.dumps({**found._asdict(), "sites": sites}))
        return
    for line in lines(loaded.info.architecture, found):
        typer.echo(line)


def lines(architecture: str, found: ModelSites) -> list[str]:
    """The sites for people: hook names, modules, and what has no single vector per
    token.
    """
    from actstore.model.site_list import condensed

    sites = condensed(found.sites)
    width = max(len(site.name) for site in sites)
    out = []
    for kind, head in (("hook", "TransformerLens' hook names"), ("module", "modules")):
        chosen = [site for site in sites if site.kind == kind and site.d is not None]
        out += [f"{architecture}: {head}"] if chosen else []
        out += [f"  {site.name:<{width}}  d {site.d}" for site in chosen]
    if found.why:
        out.append(f"no hook names: {found.why}")
    others = [site for site in sites if site.d is None]
    if others:
        out.append(
            "not one vector per token (values for tokens of shape"
            f" {list(found.tokens)})"
        )
        out += [f"  {site.name:<{width}}  {list(site.shape)}" for site in others]
    return out
