"""Writes the model card: what the SAE is, how good it is, and how to load it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

from schemas.records import EvalRecord, RunRecord
from trainer.exports.export_origin import Origin, folder_name
from trainer.runs import published_names
from trainer.runs.run_data import (
    MODEL_FIGURES,
    model_effects,
    model_figures,
    row_figures,
    rows_phrase,
)
from trainer.saes.build import kind_of

Format = Literal["saelens", "safetensors"]

_LOAD_SAELENS = """\
```python
from sae_lens import SAE

sae = SAE.load_from_disk("{site}")
# from the hub: SAE.from_pretrained("user/name", "{site}")
```

There is one folder for each site. Inputs and outputs are activations in their original
units: the scale (and mean) that each site was trained with is folded into the weights.
"""

_LOAD_SAFETENSORS = """\
```python
import trainer

sae = trainer.load(".")  # this folder, or its URL
latents = sae.encode({arguments})  # x: activations in original units
```

`sae.safetensors` holds the weights in the units of training, and the scale (and mean)
of each site; `sae.json` says what they are.
"""

_UNPROCESSED = """\
Activations are TransformerLens' *unprocessed* ones (no folding, no centring of
weights): load the model with `from_pretrained_no_processing`, or as a
`TransformerBridge` without compatibility mode."""

_DEFINITIONS = (
    "FVU is against each site's mean; MSE is summed over d; suppression is the mean of"
    " |x'| / |x|."
)

_EFFECT = """\
With the site replaced by its reconstruction, in nats per token. Recovered is the share
of the cross-entropy lost by ablation that comes back."""

_METRIC_HEAD = ("site", "FVU", "MSE", "L0", "L1", "L1 x decoder norms", "suppression")
_EFFECT_HEAD = ("site", *MODEL_FIGURES)


def card(origin: Origin, form: Format) -> str:
    """Return the README.md of an export: Markdown with the hub's front matter."""
    record = origin.record
    parts = [
        _front_matter(form),
        f"# Sparse autoencoder of {record.model}",
        _table(("", ""), _facts(origin)),
        _UNPROCESSED,
        "## Use",
        _how_to_load(record, form),
        "## Metrics",
        _metrics(origin.evaluation),
    ]
    return "\n\n".join(parts) + "\n"


def _facts(origin: Origin) -> list[tuple[str, str]]:
    """Return what is known of the SAE: name and value."""
    record = origin.record
    facts = [("model", record.model)]
    if origin.manifest is not None:
        spec = origin.manifest.spec
        corpus = published_names.name(spec.corpus.name)
        facts.append(("corpus", f"{corpus}, contexts of {spec.context} tokens"))
    centred = ", mean subtracted" if record.center else ""
    facts += [
        ("sites", ", ".join(record.sites)),
        ("kind", f"{record.sae.kind}: {_settings(record)}"),
        ("size", f"d {record.d:,}, {record.n_latents:,} latents"),
        ("rescaling of layers", f"{record.rescale}{centred}"),
        (
            "trained on",
            f"{record.rows:,} rows, {record.steps:,} steps, seed {record.seed}",
        ),
    ]
    if record.filter:
        row_filter = record.filter.model_dump_json(exclude_defaults=True)
        facts.append(("filter of rows", row_filter))
    facts += [
        ("store content id", record.content_id or "none: this SAE was imported"),
        ("run id", origin.run_id),
    ]
    return facts


def _front_matter(form: Format) -> str:
    """Return what the hub reads: the library that loads the SAE, and tags."""
    library = "saelens" if form == "saelens" else "actstore"
    tags = ["sparse-autoencoder", "actstore"]
    if form == "saelens":
        tags.append("saelens")
    lines = ["---", f"library_name: {library}", "tags:"]
    lines += [f"- {tag}" for tag in tags]
    lines.append("---")
    return "\n".join(lines)


def _how_to_load(record: RunRecord, form: Format) -> str:
    if form == "saelens":
        text = _LOAD_SAELENS.format(site=folder_name(record, 0))
    else:
        # A crosscoder's row has all sites, so there is none to name.
        takes_no_site = kind_of(record.sae).of_all_sites
        arguments = "x" if takes_no_site else f'x, "{record.sites[0]}"'
        text = _LOAD_SAFETENSORS.format(arguments=arguments)
    return text.rstrip("\n")


def _settings(record: RunRecord) -> str:
    """Return the settings of the SAE that do not stand in the card elsewhere."""
    values = record.sae.model_dump(
        exclude={"kind", "expansion", "n_latents"}, exclude_none=True
    )
    return ", ".join(f"{name} {value}" for name, value in values.items())


def _metrics(evaluation: EvalRecord | None) -> str:
    """Return the tables of metrics, with what they are of."""
    if evaluation is None:
        return "Not evaluated."
    lines = [
        (layer.site, *row_figures(layer))
        for layer in (*evaluation.layers, evaluation.pooled)
    ]
    parts = [
        (
            f"On {rows_phrase(evaluation)} of store {evaluation.content_id}, in"
            f" original units; {evaluation.dead:,} latents never fired on"
            f" them.\n{_DEFINITIONS}"
        ),
        _table(_METRIC_HEAD, lines),
    ]
    effects = model_effects(evaluation)
    if effects:
        effect_lines = [(effect.site, *model_figures(effect)) for effect in effects]
        parts += [_EFFECT, _table(_EFFECT_HEAD, effect_lines)]
    return "\n\n".join(parts)


def _table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    all_lines = [head, ["---"] * len(head), *lines]
    return "\n".join(
        "| " + " | ".join(_cell(cell) for cell in line) + " |" for line in all_lines
    )


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
