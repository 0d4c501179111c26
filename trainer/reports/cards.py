"""Shows latents of a run as cards: where they fire, and at which layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from actstore.figures.layer_order import short_site
from actstore.store.store import Store
from trainer.analysis.latent_examples import Example, compute_examples
from trainer.reports.tables import templates
from trainer.runs.run_data import RunData
from trainer.runs.trained_sae import load

HEIGHT = 44  # of the bar of the layer with most firings, in pixels


def cards(
    run: RunData, store: Store, n_latents: int, *, trust_remote_code: bool = False
) -> Markup:
    """Return cards of a run's latents.

    Args:
        run: The run.
        store: Its store.
        n_latents: How many are shown.
        trust_remote_code: Run code that the store keeps with its tokenizer.
    """
    examples = compute_examples(
        load(run.url),
        store,
        run.firings,
        run.rows,
        n_latents,
        trust_remote_code=trust_remote_code,
    )
    names = [short_site(site) for site in run.record.sites]
    shown = [_card(example, names) for example in examples]
    text = templates().get_template("cards.html").render(cards=shown)
    return Markup(text)  # noqa: S704 (the template has escaped what it was given)


def _card(example: Example, names: Sequence[str]) -> dict[str, Any]:
    """Return a latent as its card's template takes it."""
    highest = max(example.shares)
    bars = [
        {
            "label": name.split()[0],
            "title": f"layer {name}: {share:.0%}",
            "height": round(HEIGHT * share / highest, 1),
        }
        for name, share in zip(names, example.shares, strict=True)
    ]
    contexts = [
        {
            "site": short_site(context.site),
            "value": f"{context.value:.2f}",
            "before": _visible(context.before),
            "token": _visible(context.token) or "␣",
            "after": _visible(context.after),
        }
        for context in example.contexts
    ]
    return {
        "latent": example.latent,
        "density": f"{example.frequency:.2e}",
        "layers": f"{example.layers:.2f}",
        "variance": f"{example.variance:.3g}",
        "bars": bars,
        "contexts": contexts,
    }


def _visible(text: str) -> str:
    """Return text in which line ends can be seen."""
    return text.replace("\n", "⏎")
