"""Harvests one small model of a type, and prints a line about what came of it."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np
import torch
import transformers
from transformers.models.auto import modeling_auto

from actstore.errors import ActstoreError
from actstore.model.hugging_face_tap import SWITCHES
from actstore.model.load_model import LoadedModel, wrap_module
from actstore.model.open_tap import open_tap
from actstore.model.site_list import list_sites
from tests.model_types.small import SMALL, small_model

HEAD = """# Architectures

Every model type of transformers {transformers} that has a language model (causal, masked or sequence to sequence), and some that do
not read text, each built small with random weights, opened and run as a harvest does (TransformerLens {transformer_lens}).
`python -m tests.model_types` writes this page; a slow test compares it.

- **hook names**: how many of TransformerLens' hook names can be harvested, of 2 layers; in brackets, of the family's base class.
- **modules**: how many of the model's own modules can, by name. "-": it has none with one vector per token.
- **padding**: where padding may stand so that values of modules at tokens are those without it; elsewhere it is refused.

{counts}

| model type | class | hook names | modules | padding | what is said |
|---|---|---|---|---|---|
"""


class Line(NamedTuple):
    """One model type. verdict: works, refused (says why), or not built (our small
    configuration does not fit it).
    """

    model_type: str
    name: str
    verdict: str
    hooks: str = "-"
    modules: str = "-"
    padding: str = "-"
    says: str = ""

    def markdown(self) -> str:
        said = self.says.replace("|", "\\|")
        said = f"{self.verdict}: {said}" if self.verdict != "works" else said
        return f"| {self.model_type} | {self.name} | {self.hooks} | {self.modules} | {self.padding} | {said} |"


def surveyed(model_type: str, name: str) -> Line:
    """Build, list, open and run. An error that is not the project's own goes through."""
    try:
        model = wrap_module(small_model(model_type, name))
        runs = _runs(model.module)
    except Exception as error:  # noqa: BLE001 (transformers' own, of a configuration that is too small)
        return Line(model_type, name, "not built", says=_short(error))
    try:
        found = list_sites(model)
    except ActstoreError as error:
        if "RuntimeError" in str(error) and not runs:
            return Line(model_type, name, "not built", says=_short(error))
        return Line(model_type, name, "refused", says=_short(error))
    counts, padding = {}, "-"
    for kind in ("module", "hook"):
        widths = {
            site.name: site.d
            for site in found.sites
            if site.kind == kind and site.d is not None
        }
        counts[kind] = str(len(widths)) if widths else "-"
        if widths:
            together = {
                name: d
                for name, d in widths.items()
                if name.rpartition(".")[2] not in SWITCHES
            }
            takes = _harvested(model, together)
            padding = takes if kind == "module" else padding
    base = _base(model_type, name) if counts["hook"] != "-" else None
    hooks = counts["hook"] + (f" ({base})" if base is not None else "")
    return Line(
        model_type,
        name,
        "works",
        hooks,
        counts["module"],
        padding,
        "" if counts["hook"] != "-" else found.why,
    )


def page(lines: Iterable[Line]) -> str:
    """The table."""
    from importlib.metadata import version

    lines = list(lines)
    shown = {
        "works": "work",
        "refused": "are refused",
        "not built": "are not built (our small configuration does not fit)",
    }
    counts = [
        f"{sum(line.verdict == one for line in lines)} {text}"
        for one, text in shown.items()
    ]
    versions = {
        "transformers": transformers.__version__,
        "transformer_lens": version("transformer_lens"),
    }
    return HEAD.format(
        counts=f"{len(lines)} model types: {', '.join(counts)}.", **versions
    ) + "".join(f"{line.markdown()}\n" for line in lines)


def _harvested(model: LoadedModel, widths: dict[str, Any]) -> str:
    """Open a tap at all of these sites, run it, and say what padding it takes."""
    tap = open_tap(model, widths, context=16)
    try:
        assert {site.name: site.d for site in tap.sites} == widths
        seen: dict[int, torch.Size] = {}
        tap.run(
            torch.randint(3, SMALL["vocab_size"], (3, 16)),
            None,
            lambda i, x: seen.__setitem__(i, x.shape),
        )
        assert [seen[i] for i in range(len(widths))] == [
            (3, 16, d) for d in widths.values()
        ]
        sides = []
        for side, tokens in (
            ("before", [[-1, -1, 5, 6, 7]]),
            ("after", [[5, 6, 7, -1, -1]]),
        ):
            try:
                tap.check_padding(np.array(tokens, np.int32))
                sides.append(side)
            except ActstoreError:
                continue
        return {0: "none", 1: sides[0] if sides else "", 2: "both"}[len(sides)]
    finally:
        tap.close()


def _base(model_type: str, name: str) -> int | None:
    """How many hook names the base class has, where there is another."""
    base = modeling_auto.MODEL_MAPPING_NAMES.get(model_type)
    if not isinstance(base, str) or base == name:
        return None
    found = list_sites(wrap_module(small_model(model_type, base)))
    return sum(site.kind == "hook" and site.d is not None for site in found.sites)


def _runs(module: Any) -> bool:
    with suppress(Exception), torch.no_grad():
        module(torch.full((2, 11), 5))
        return True
    return False


def _short(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
