"""Shows latents of a run as cards: where they fire, how strongly, and at which layers."""

from __future__ import annotations

import tempfile

from markupsafe import Markup

from actstore.store.store import Store
from trainer.explorer.cards import cards_html, interesting_latents
from trainer.explorer.explore import explore
from trainer.runs.run_data import RunData

# Rows of each site that are looked at: enough for contexts of all but rare latents. Of
# large dictionaries fewer are, since encoding is what takes the time: a CPU computes
# some 50 million latents a second.
MOST_ROWS = 50_000
LEAST_ROWS = 2_000
MOST_LATENTS = 5_000_000_000
NOTHING = Markup("<p>No latent is worth a card.</p>")


def cards(
    run: RunData, store: Store, n_latents: int, *, trust_remote_code: bool = False
) -> Markup:
    """Return cards of the latents of a run that are most worth one.

    Args:
        run: The run.
        store: Its store; its held-out rows are looked at, or training rows where it
            holds none out.
        n_latents: How many are shown, at most.
        trust_remote_code: Run code that the store keeps with its tokenizer.
    """
    if not n_latents:
        return NOTHING
    of_a_row = len(run.record.sites) * run.record.n_latents
    rows = min(MOST_ROWS, max(LEAST_ROWS, MOST_LATENTS // of_a_row))
    with tempfile.TemporaryDirectory(prefix="actstore-report-") as folder:
        explore(
            run.url,
            out=folder,
            store=store.url,
            split="held_out" if len(store.rows("held_out")) else "train",
            rows=rows,
            logits=False,
            trust_remote_code=trust_remote_code,
            tell=lambda note: None,  # noqa: ARG005 (the report has told of the store)
        )
        latents = interesting_latents(
            folder, n_latents, across_layers=len(run.record.sites) > 1
        )
    return cards_html(latents) if latents else NOTHING
