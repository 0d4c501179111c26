"""`actstore plan`: what a harvest will take. Importing this loads typer only."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from actstore.harvesting.harvest_command import rounding, say_if_slow, warnings_on
from actstore.harvesting.harvest_options import Device, with_spec

if TYPE_CHECKING:
    from schemas.records import CorpusEstimate, HarvestEstimate


@with_spec
def plan_command(
    spec: Any,
    device: Device = "cpu",
    batches: Annotated[int, typer.Option(min=1, help="Calibration batches.")] = 3,
    bandwidth: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="Of the storage, per second: 500MB, 2GB.",
            show_default="no less than decoding",
        ),
    ] = None,
    storage_price: Annotated[float, typer.Option(help="Per GB and month.")] = 0.023,
    put_price: Annotated[float, typer.Option(help="Per 1,000 PUT requests.")] = 0.005,
    get_price: Annotated[float, typer.Option(help="Per 1,000 GET requests.")] = 0.0004,
    device_price: Annotated[float, typer.Option(help="Of the device, per hour.")] = 2.0,
    months: Annotated[float, typer.Option(help="That the store is kept.")] = 1.0,
    as_json: Annotated[bool, typer.Option("--json", help="For scripts.")] = False,
) -> None:
    """What a harvest with the same options will take: rows, bytes, memory, time, cost,
    break-even. Writes nothing.
    """
    from rich.console import Console

    from actstore.console.counts import parse_size
    from actstore.machine.glibc_malloc import keep_freed_memory

    keep_freed_memory()
    from actstore.harvesting.estimate import Prices, estimate

    say_if_slow(spec, device)
    prices = Prices(storage_price, put_price, get_price, device_price, months)
    speed = float(parse_size(bandwidth)) if bandwidth else None
    with warnings_on(Console(stderr=True)):
        found = estimate(
            spec, device=device, batches=batches, bandwidth=speed, prices=prices
        )
    if found.corpus.short:
        from actstore.text.corpus_size import sentence

        typer.echo(f"warning: {sentence(found.corpus, spec.corpus.name)}", err=True)
    if as_json:
        typer.echo(found.to_json(), nl=False)
        return
    for name, value in lines(found, prices):
        typer.echo(f"{name:<14} {value}")


def lines(found: HarvestEstimate, prices: Any) -> list[tuple[str, str]]:
    """The estimate for people: (name, value)."""
    from actstore.harvesting.worker import non_finite_rows

    layout, memory = found.layout, found.memory
    names = [site.name for site in found.sites]
    shown = ", ".join(names) if len(names) <= 3 else f"{names[0]}, ..., {names[-1]}"
    codecs = [
        f"{name} {size(one.bytes)} ({one.ratio:.2f} of the"
        f" values{', chosen' if name == found.codec else ''})"
        for name, one in found.codecs.items()
    ]
    held = {
        "process and model": memory.process,
        "units in flight": memory.units,
        "encoding": memory.encoding,
        "forward": memory.forward,
    }
    rounded = rounding(found.corpus.asked, layout.context)
    cost = found.harvest_s / 3600 * prices.device
    return [
        ("corpus", _corpus(found.corpus)),
        *([("tokens", rounded)] if rounded and not found.corpus.short else []),
        ("sites", f"{len(names)}: {shown}"),
        ("rows", f"{found.rows:,} per site ({100 * found.kept:.1f} % of the tokens)"),
        *([("not finite", non_finite_rows(found.non_finite, found.tried))] if found.non_finite else []),
        ("units", f"{layout.n_units:,} of {layout.unit_sequences} sequences, chunks of {layout.chunk_rows} rows"),
        ("bytes", "; ".join(codecs)),
        ("objects", f"{found.objects:,}"),
        ("memory", f"{size(memory.total)}: " + ", ".join(f"{name} {size(n)}" for name, n in held.items())),
        *([("GPU memory", f"{size(memory.device)} beside the model")] if memory.device else []),
        ("model alone", f"{found.forward_tokens_s:,.0f} tokens/s, {duration(found.forward_s)}"),
        ("harvest", f"{found.harvest_tokens_s:,.0f} tokens/s, {duration(found.harvest_s)}"),
        ("one reading", duration(found.read_s)),
        ("cost", f"harvest {cost:,.2f}, PUT {found.put_cost:,.2f}, GET {found.get_cost:,.2f} a reading"),
        ("storage", f"{found.storage_per_month:,.2f} a month"),
        ("break-even", _break_even(found)),
    ]  # fmt: skip


def _corpus(found: CorpusEstimate) -> str:
    if found.tokens is None:
        return (
            f"its size is not known; the figures hold if it has the {found.asked:,}"
            " tokens asked"
        )
    how = (
        "counted"
        if found.how == "counted"
        else f"about, from the first {found.documents:,} documents"
    )
    return (
        f"{found.tokens:,} tokens ({how}); asked"
        f" {found.asked:,}{', which it does not have' if found.short else ''}"
    )


def _break_even(found: HarvestEstimate) -> str:
    def runs(n: int | None) -> str:
        if n is None:
            return "never: reading takes no less than the model"
        return "from the first SAE run on" if n <= 1 else f"from {n:,} SAE runs on"

    in_time, in_money = runs(found.break_even_runs), runs(found.break_even_runs_cost)
    return f"storing beats rerunning the model: in time {in_time}; in money {in_money}"


def size(n: float) -> str:
    """Bytes for people."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if n < 1000 or unit == "TB":
            return f"{n:,.0f} {unit}" if unit == "B" else f"{n:,.1f} {unit}"
        n /= 1000
    raise AssertionError


def duration(seconds: float) -> str:
    """Seconds for people."""
    if seconds < 120:
        return f"{seconds:,.1f} s"
    return f"{seconds / 60:,.1f} min" if seconds < 7200 else f"{seconds / 3600:,.1f} h"
