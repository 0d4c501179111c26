"""The API reference and the guide "From Python" have all that the packages offer."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import get_args

import actstore
import trainer
from schemas.base import Schema
from schemas.sae import FlatSpec

DOCS = Path(__file__).parents[2] / "docs"
PACKAGES = (actstore, trainer)


def test_the_reference_has_every_spec_and_record() -> None:
    page = (DOCS / "api" / "specs.md").read_text()
    for package in PACKAGES:
        for name in package.__all__:
            offered = getattr(package, name)
            if isinstance(offered, type) and issubclass(offered, Schema):
                assert re.search(rf"\b{name}\b", page), name


def test_the_reference_names_the_fields_that_kinds_of_sae_inherit() -> None:
    for page in ("specs.md", "trainer.md"):
        text = (DOCS / "api" / page).read_text()
        shown = re.findall(r"inherited_members: \[(.*)\]", text)[0].split(", ")
        for kind in get_args(FlatSpec):
            inherited = set(kind.model_fields) - set(inspect.get_annotations(kind))
            assert inherited <= set(shown), (page, kind.__name__)


def test_the_reference_has_every_error() -> None:
    page = (DOCS / "api" / "errors.md").read_text()
    assert "::: actstore.errors" in page
    assert "::: trainer.errors" in page


def test_the_guide_calls_every_function() -> None:
    guide = (DOCS / "guides" / "python.md").read_text()
    for package in PACKAGES:
        for name in package.__all__:
            if inspect.isfunction(getattr(package, name)):
                assert f"{package.__name__}.{name}(" in guide, name
