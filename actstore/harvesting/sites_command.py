"""The command `actstore sites`: what a model has to harvest.

Importing this loads nothing heavy.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import typer

from actstore.console.cli_options import AsJson
from actstore.harvesting.harvest_options import (
    Model,
    Revision,
    TrustRemoteCode,
    option_names,
)

if TYPE_CHECKING:
    from actstore.model.site_list import ModelSites

SCHEMA = "schemas.source:ModelSource"
# Each option's parameter, and the field of the schema that it gives.
FIELDS = {
    "model": "name",
    "revision": "revision",
    "trust_remote_code": "trust_remote_code",
}
HEADINGS = {"hook": "TransformerLens' hook names", "module": "modules"}


def sites_command(
    model: Model,
    revision: Revision = None,
    trust_remote_code: TrustRemoteCode = False,
    as_json: AsJson = False,
) -> None:
    """The sites of a model: names for --sites, and the width of each one's vectors.

    Runs the model on a few tokens.
    """
    from actstore.model.load_model import load_model
    from actstore.model.site_list import list_sites
    from actstore.validation import validated
    from schemas.source import ModelSource

    fields: dict[str, str | bool] = {"name": model}
    if revision is not None:
        fields["revision"] = revision
    # Only what was given: an error then names the options that the user wrote.
    if trust_remote_code:
        fields["trust_remote_code"] = True
    source = validated(ModelSource, fields, "model", option_names(FIELDS))
    loaded = load_model(source)
    model_sites = list_sites(loaded)
    if as_json:
        sites = [site._asdict() for site in model_sites.sites]
        typer.echo(json.dumps({**model_sites._asdict(), "sites": sites}))
        return
    for line in lines(loaded.info.architecture, model_sites):
        typer.echo(line)


def lines(architecture: str, model_sites: ModelSites) -> list[str]:
    """Return the sites for people, in lines.

    Hook names come first, then modules, then what has no single vector per token.
    """
    from actstore.model.site_list import condensed

    sites = condensed(model_sites.sites)
    width = max(len(site.name) for site in sites)
    text: list[str] = []
    for kind, heading in HEADINGS.items():
        harvestable = [
            site for site in sites if site.kind == kind and site.d is not None
        ]
        if harvestable:
            text.append(f"{architecture}: {heading}")
        text += [f"  {site.name:<{width}}  d {site.d}" for site in harvestable]
    if model_sites.why:
        text.append(f"no hook names: {model_sites.why}")
    others = [site for site in sites if site.d is None]
    if others:
        text.append(
            "not one vector per token (values for tokens of shape"
            f" {list(model_sites.tokens)})"
        )
        text += [f"  {site.name:<{width}}  {list(site.shape)}" for site in others]
    return text
