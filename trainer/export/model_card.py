"""The model card: what the SAE is, how good it is, and how to load it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

from schemas.records import EvalRecord, RunRecord
from trainer.export.export_origin import Origin, folder_name
from trainer.runs import published_names
from trainer.runs.run_data import rows_of, shown

Format = Literal["saelens", "safetensors"]

_LOAD = {
    "saelens": (
        """\
```python
from sae_lens import SAE

sae = SAE.load_from_disk("{site}")  # from the hub: SAE.from_pretrained("user/name", "{site}")
```

One folder per site. Input and output are activations in their original units: the scale (and mean) of each layer that
the SAE was trained with is folded into its weights."""
    ),
    "safetensors": (
        """\
```python
import trainer

sae = trainer.load(".")  # this folder, or its URL
latents = sae.encode({arguments})  # x: activations in original units
```

`sae.safetensors` holds the weights in the units of training, and each layer's scale (and mean); `sae.json` what they
are."""
    ),
}


_DEFINITIONS = (
    "FVU is against each site's mean; MSE is summed over d; suppression is the mean of"
    " |x'| / |x|."
)
_EFFECT = """\
With the site replaced by its reconstruction, in nats per token; recovered is the share of the cross-entropy lost by
ablation that comes back."""
_UNPROCESSED = """\
Activations are TransformerLens' *unprocessed* ones (no folding, no centring of weights): load the model with
`from_pretrained_no_processing`, or as a `TransformerBridge` without compatibility mode."""


def card(origin: Origin, form: Format) -> str:
    """README.md of an export, in Markdown with the hub's front matter."""
    record = origin.record
    facts = [
        ("model", record.model),
        ("sites", ", ".join(record.sites)),
        ("kind", f"{record.sae.kind}: {_settings(origin)}"),
        ("size", f"d {record.d:,}, {record.n_latents:,} latents"),
        (
            "rescaling of layers",
            f"{record.rescale}{', mean subtracted' if record.center else ''}",
        ),
        (
            "trained on",
            f"{record.rows:,} rows, {record.steps:,} steps, seed {record.seed}",
        ),
        *(
            [("filter of rows", record.filter.model_dump_json(exclude_defaults=True))]
            if record.filter
            else []
        ),
        ("store content id", record.content_id or "none: this SAE was imported"),
        ("run id", origin.run_id),
    ]
    if origin.manifest is not None:
        spec = origin.manifest.spec
        facts.insert(
            1,
            (
                "corpus",
                (
                    f"{published_names.name(spec.corpus.name)}, contexts of"
                    f" {spec.context} tokens"
                ),
            ),
        )
    parts = [
        _front_matter(form),
        f"# Sparse autoencoder of {record.model}",
        _table(("", ""), facts),
        _UNPROCESSED,
        "## Use",
        _LOAD[form].format(
            site=folder_name(record, 0) if form == "saelens" else "",
            arguments=_arguments(record),
        ),
        "## Metrics",
        _metrics(origin.evaluation),
    ]
    return "\n\n".join(parts) + "\n"


def _front_matter(form: Format) -> str:
    tags = [
        "sparse-autoencoder",
        "actstore",
        *(["saelens"] if form == "saelens" else []),
    ]
    library = "saelens" if form == "saelens" else "actstore"
    return "\n".join(
        [
            "---",
            f"library_name: {library}",
            "tags:",
            *(f"- {tag}" for tag in tags),
            "---",
        ]
    )


def _arguments(record: RunRecord) -> str:
    """What `encode` takes: a crosscoder's rows [..., n_sites, d] hold all sites."""
    return "x" if record.sae.kind == "crosscoder" else f'x, "{record.sites[0]}"'


def _settings(origin: Origin) -> str:
    values = origin.record.sae.model_dump(
        exclude={"kind", "expansion", "n_latents"}, exclude_none=True
    )
    return ", ".join(f"{name} {value}" for name, value in values.items())


def _metrics(evaluation: EvalRecord | None) -> str:
    if evaluation is None:
        return "Not evaluated."
    rows = [
        (
            one.site,
            *(
                shown(v)
                for v in (
                    one.fvu,
                    one.mse,
                    one.l0,
                    one.l1,
                    one.l1_decoder,
                    one.suppression,
                )
            ),
        )
        for one in (*evaluation.layers, evaluation.pooled)
    ]
    which = f"{rows_of(evaluation)} of store {evaluation.content_id}"
    text = [
        (
            f"On {which}, in original units; {evaluation.dead:,} latents never fired on"
            f" them.\n{_DEFINITIONS}"
        ),
        _table(
            ("site", "FVU", "MSE", "L0", "L1", "L1 x decoder norms", "suppression"),
            rows,
        ),
    ]
    if evaluation.model:
        effects = [
            (
                one.site,
                *(
                    f"{v:.4f}"
                    for v in (one.ce_clean, one.ce_sae, one.ce_zero, one.ce_mean)
                ),
                *(
                    shown(v, ".4f")
                    for v in (one.recovered_zero, one.recovered_mean, one.kl)
                ),
            )
            for one in (
                *evaluation.model,
                *([evaluation.model_pooled] if evaluation.model_pooled else []),
            )
        ]
        head = (
            "site",
            "CE clean",
            "CE SAE",
            "CE zero",
            "CE mean",
            "recovered (zero)",
            "recovered (mean)",
            "KL",
        )
        text += [
            _EFFECT,
            _table(head, effects),
        ]
    return "\n\n".join(text)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(
        "| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines
    )


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
