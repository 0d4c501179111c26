"""What training says when it has ended: how good the SAEs are, what it took, where they
lie, what to do next.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from actstore.errors import ActstoreError
from actstore.format.storage import Storage
from trainer.runs import journal
from trainer.runs.run_files import read_json
from trainer.training.progress_display import duration

if TYPE_CHECKING:
    from schemas.records import EvalRecord
    from trainer.runs.trained_sae import TrainedSae
    from trainer.training.step_loop import Progress

MOST_ROWS, LEAST_ROWS = 1 << 15, 1 << 11  # evaluated over all sites
# and no more than this part of the rows trained on, so that it takes a small part of
# the time
SHARE = 50
FEW = 1000  # rows below which figures are told to mean little
# of the latents: more that never fired are told, where they could have so many times
MANY, ENOUGH = 0.1, 50.0
NAMED = 3  # more runs than these are named together in commands


class Ended(NamedTuple):
    """One run. record: None where it was not evaluated; note: why, or what else is to
    be known; never: of each layer, how many latents fired on none of its rows; dead:
    latents at the last step; last: None where it had ended before.
    """

    url: str
    n_latents: int
    record: EvalRecord | None
    never: list[int]
    note: str
    dead: int | None
    last: Progress | None
    seconds: float


def ended(
    url: str,
    store_url: str,
    device: str,
    last: Progress | None,
    seconds: float,
    evaluate: bool,
) -> Ended:
    """Look at a run that has ended: its SAE as a user gets it, on a few rows. A store
    or a device that fails now is told in the note. evaluate: False for an SAE that no
    single device may hold.
    """
    from trainer.runs.trained_sae import load

    records = journal.read(Storage(url))
    dead = records[-1].dead if records else None
    sae = load(url)
    one = Ended(url, sae.n_latents, None, [], "", dead, last, seconds)
    if not evaluate:
        return one._replace(
            note="not evaluated here, since its dictionary is split over devices"
        )
    try:
        return _evaluated(one, sae.to(device), store_url)
    except (ActstoreError, OSError, RuntimeError, MemoryError) as error:
        # no room on a device is a RuntimeError
        return one._replace(note=f"not evaluated: {str(error) or type(error).__name__}")


def _evaluated(one: Ended, sae: TrainedSae, store_url: str) -> Ended:
    from actstore.store.open_store import open as open_store
    from trainer.evaluate.calibrate import asked_l0, off_target
    from trainer.evaluate.row_metrics import evaluate, holds_out

    store = open_store(store_url)
    split = "held_out" if holds_out(sae, store) else "train"
    rows = max(LEAST_ROWS, min(MOST_ROWS, sae.record.rows // SHARE)) // len(sae.sites)
    record, firings = evaluate(sae, store, split, max(1, rows))
    notes = [
        (
            "the store holds no rows out that it could see: these are rows of training"
            if split != "held_out"
            else None
        ),
        f"figures of {record.rows:,} rows mean little" if record.rows < FEW else None,
        _bad(one, record),
        off_target(record, asked_l0(sae)),
        _centred(one.url, sae),
    ]
    note = "; ".join(note for note in notes if note is not None)
    return one._replace(
        record=record, never=(firings == 0).sum(dim=1).tolist(), note=note
    )


def _bad(one: Ended, record: EvalRecord) -> str | None:
    """What a table of figures does not cry out."""
    bad = [layer.site for layer in record.layers if layer.fvu >= 1]
    if bad:
        return (
            f"an FVU of 1 or more, no better than the mean, at {', '.join(bad)}; where"
            " a site's rows are much shorter than others', --rescale unit makes them"
            " count as much"
        )
    usual = record.rows * record.pooled.l0 / one.n_latents  # firings of a latent
    if usual > ENOUGH and record.dead > MANY * one.n_latents:
        return (
            f"{record.dead:,} of {one.n_latents:,} latents never fired here; more"
            " --rows or fewer latents may help"
        )
    return None


def _centred(url: str, sae: TrainedSae) -> str | None:
    from schemas.train import TrainSpec

    asked = read_json(Storage(url), "spec.json", TrainSpec).stream.center
    if sae.mean is None or asked is not None:
        return None
    return (
        "the sites' means lie far apart and were taken off their rows; --no-center"
        " leaves them"
    )


def show(console: Any, runs: Sequence[Ended], out: str | None = None) -> None:
    """Print it. out: the folder of a sweep's runs; None: there is one run."""
    from rich.markup import escape

    for one in runs:
        if out is None and one.record is not None:
            console.print(_by_layer(one, one.record))
    if out is not None and runs:
        console.print(_by_run(runs))
    for one in runs:
        if one.note:
            console.print(
                f"[yellow]note[/]: {escape(one.url)}: {escape(one.note)}",
                highlight=False,
                soft_wrap=True,
            )
    unseen = all(one.record is None or one.record.split == "held_out" for one in runs)
    for line in [
        *_took(runs),
        *_next([one.url for one in runs], out, "" if unseen else " --split train"),
    ]:
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def _by_layer(one: Ended, record: EvalRecord) -> Any:
    from trainer.runs.run_data import rows_of, short, shown

    table = _table(rows_of(record), "layer", "FVU", "L0", "never fired")
    for layer, never in zip(record.layers, one.never, strict=True):
        table.add_row(
            short(layer.site), shown(layer.fvu), shown(layer.l0), f"{never:,}"
        )
    table.add_row(
        "all", shown(record.pooled.fvu), shown(record.pooled.l0), f"{record.dead:,}"
    )
    return table


def _by_run(runs: Sequence[Ended]) -> Any:
    from trainer.runs.run_data import rows_of, shown

    seen = {rows_of(one.record) for one in runs if one.record is not None}
    rows = (
        ""
        if not seen
        else (
            f", of each {seen.pop()}" if len(seen) == 1 else ", each on rows of its own"
        )
    )
    table = _table(
        f"{len(runs)} SAEs{rows}", "run", "FVU", "L0", "never fired", "dead", "latents"
    )
    for one in runs:
        name, record = one.url.rstrip("/").rpartition("/")[2], one.record
        own = (
            ["–"] * 3
            if record is None
            else [shown(record.pooled.fvu), shown(record.pooled.l0), f"{record.dead:,}"]
        )
        table.add_row(
            name,
            *own,
            "–" if one.dead is None else f"{one.dead:,}",
            f"{one.n_latents:,}",
        )
    return table


def _table(title: str, first: str, *figures: str) -> Any:
    from rich.box import SIMPLE
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=SIMPLE)
    table.add_column(first, overflow="fold")
    for name in figures:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _took(runs: Sequence[Ended]) -> list[str]:
    """A line for a run, or for the passes of a sweep."""
    out = []
    if len(runs) == 1 and runs[0].dead is not None:
        out.append(
            f"dead at the last step: {runs[0].dead:,} of {runs[0].n_latents:,} latents"
        )
    passes = {id(one.last): one for one in runs}
    for one in passes.values():
        if one.last is None:
            out.append(
                "it had ended before" if len(runs) == 1 else "some had ended before"
            )
            continue
        speed = f"{one.last.rows / max(one.last.seconds, 1e-9):,.0f} rows/s"
        stall = f"stall {one.last.stall_s / max(one.last.seconds, 1e-9):.1%}"
        out.append(
            f"{one.last.rows:,} rows in {duration(one.seconds)}, of training {speed},"
            f" {stall}"
        )
    return out


def _next(urls: Sequence[str], out: str | None, rows: str) -> list[str]:
    """Where the runs lie, and the commands that may come next."""
    if not urls:
        return []
    named = " ".join(map(shlex.quote, urls))
    if out is not None and len(urls) > NAMED and Storage(out).local is not None:
        named = f"{shlex.quote(out.rstrip('/'))}/*"
    return [
        f"it lies in {urls[0]}" if out is None else f"they lie in {out}",
        "next:",
        f"  trainer eval {named}{rows}",
        f"  trainer report {named}",
    ]
