"""The command `actstore plan`: what a harvest will take.

Importing this loads nothing heavy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from actstore.console.cli_options import AsJson
from actstore.console.short_lists import first_and_last
from actstore.harvesting.harvest_command import rounding, say_if_slow
from actstore.harvesting.harvest_options import Device, with_spec
from actstore.harvesting.progress_display import warnings_on

if TYPE_CHECKING:
    from actstore.harvesting.estimate import Prices
    from schemas.records import CorpusEstimate, HarvestEstimate


@with_spec
def plan_command(
    spec: Any,
    device: Device = "cpu",
    batches: Annotated[
        int,
        typer.Option(metavar="N", min=1, help="Calibration batches."),
    ] = 3,
    bandwidth: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="Of the storage, per second: 500MB, 2GB.",
            show_default="no less than decoding",
        ),
    ] = None,
    storage_price: Annotated[
        float, typer.Option(metavar="NUMBER", help="Per GB and month.")
    ] = 0.023,
    put_price: Annotated[
        float, typer.Option(metavar="NUMBER", help="Per 1,000 PUT requests.")
    ] = 0.005,
    get_price: Annotated[
        float, typer.Option(metavar="NUMBER", help="Per 1,000 GET requests.")
    ] = 0.0004,
    egress_price: Annotated[
        float,
        typer.Option(metavar="NUMBER", help="Per GB read from another region."),
    ] = 0.09,
    device_price: Annotated[
        float, typer.Option(metavar="NUMBER", help="Of the device, per hour.")
    ] = 2.0,
    months: Annotated[
        float, typer.Option(metavar="NUMBER", help="That the store is kept.")
    ] = 1.0,
    as_json: AsJson = False,
) -> None:
    """Estimate what a harvest with the same options will take. Writes nothing.

    Rows, bytes, memory, time, cost, and the number of SAE runs from which it pays.
    """
    from rich.console import Console

    from actstore.console.counts import parse_size
    from actstore.machine.glibc_malloc import keep_freed_memory

    # As `harvest` does, so that memory is measured as it will be taken.
    keep_freed_memory()
    from actstore.harvesting.estimate import Prices, estimate

    say_if_slow(spec, device)
    prices = Prices(
        storage=storage_price,
        put=put_price,
        get=get_price,
        egress=egress_price,
        device=device_price,
        months=months,
    )
    bytes_per_s = float(parse_size(bandwidth)) if bandwidth else None
    with warnings_on(Console(stderr=True)):
        estimated = estimate(
            spec, device=device, batches=batches, bandwidth=bytes_per_s, prices=prices
        )
    if estimated.corpus.short:
        from actstore.text.corpus_size import describe_estimate

        warning = describe_estimate(estimated.corpus, spec.corpus.name)
        typer.echo(f"warning: {warning}", err=True)
    if as_json:
        typer.echo(estimated.to_json(), nl=False)
        return
    for name, value in lines(estimated, prices):
        typer.echo(f"{name:<14} {value}")


def lines(estimated: HarvestEstimate, prices: Prices) -> list[tuple[str, str]]:
    """Return the estimate for people, as lines of a name and a value."""
    return [
        *_what_is_harvested(estimated),
        *_size_lines(estimated),
        *_time_lines(estimated, prices),
    ]


def _what_is_harvested(estimated: HarvestEstimate) -> list[tuple[str, str]]:
    from actstore.harvesting.harvest_warnings import describe_non_finite

    layout = estimated.layout
    names = [site.name for site in estimated.sites]
    text = [("corpus", _corpus(estimated.corpus))]
    rounded = rounding(estimated.corpus.asked, layout.context)
    # A corpus that is short decides itself how many tokens there are.
    if rounded is not None and not estimated.corpus.short:
        text.append(("tokens", rounded))
    text.append(("sites", f"{len(names)}: {first_and_last(names)}"))
    kept = f"{100 * estimated.kept:.1f} % of the tokens"
    text.append(("rows", f"{estimated.rows:,} per site ({kept})"))
    if estimated.non_finite:
        described = describe_non_finite(estimated.non_finite, estimated.tried)
        text.append(("not finite", described))
    return text


def _size_lines(estimated: HarvestEstimate) -> list[tuple[str, str]]:
    layout = estimated.layout
    memory = estimated.memory
    codecs = []
    for name, codec in estimated.codecs.items():
        chosen = ", chosen" if name == estimated.codec else ""
        ratio = f"{codec.ratio:.2f} of the values"
        codecs.append(f"{name} {size(codec.bytes)} ({ratio}{chosen})")
    memory_by_part = {
        "process and model": memory.process,
        "units in flight": memory.units,
        "encoding": memory.encoding,
        "forward": memory.forward,
    }
    memory_parts = [f"{name} {size(n)}" for name, n in memory_by_part.items()]
    unit_size = f"{layout.unit_sequences} sequences, chunks of {layout.chunk_rows} rows"
    text = [
        ("units", f"{layout.n_units:,} of {unit_size}"),
        ("bytes", "; ".join(codecs)),
        ("objects", f"{estimated.objects:,}"),
        ("memory", f"{size(memory.total)}: {', '.join(memory_parts)}"),
    ]
    # The staging buffers; on the CPU there are none.
    if memory.device:
        text.append(("GPU memory", f"{size(memory.device)} beside the model"))
    return text


def _time_lines(estimated: HarvestEstimate, prices: Prices) -> list[tuple[str, str]]:
    forward_speed = f"{estimated.forward_tokens_s:,.0f} tokens/s"
    harvest_speed = f"{estimated.harvest_tokens_s:,.0f} tokens/s"
    device_cost = estimated.harvest_s / 3600 * prices.device
    cost = (
        f"harvest {device_cost:,.2f}, PUT {estimated.put_cost:,.2f},"
        f" GET {estimated.get_cost:,.2f} a reading, or"
        f" {estimated.get_cost + estimated.egress_cost:,.2f} from another region"
    )
    requests = (
        f"{estimated.puts_per_unit:,} PUT a unit, {estimated.gets_per_gb:,.0f} GET a GB"
        " read, on an object store"
    )
    return [
        ("model alone", f"{forward_speed}, {duration(estimated.forward_s)}"),
        ("harvest", f"{harvest_speed}, {duration(estimated.harvest_s)}"),
        ("one reading", duration(estimated.read_s)),
        ("requests", requests),
        ("cost", cost),
        ("storage", f"{estimated.storage_per_month:,.2f} a month"),
        ("break-even", _break_even(estimated)),
    ]


def _corpus(corpus: CorpusEstimate) -> str:
    """Return a sentence about how many tokens the corpus has."""
    if corpus.tokens is None:
        return (
            f"its size is not known; the figures hold if it has the {corpus.asked:,}"
            " tokens asked"
        )
    how = f"about, from the first {corpus.documents:,} documents"
    if corpus.how == "counted":
        how = "counted"
    lacking = ", which it does not have" if corpus.short else ""
    return f"{corpus.tokens:,} tokens ({how}); asked {corpus.asked:,}{lacking}"


def _break_even(estimated: HarvestEstimate) -> str:
    """Return a sentence about when storing beats rerunning the model."""
    in_time = _from_runs(estimated.break_even_runs)
    in_money = _from_runs(estimated.break_even_runs_cost)
    return f"storing beats rerunning the model: in time {in_time}; in money {in_money}"


def _from_runs(n_runs: int | None) -> str:
    if n_runs is None:
        return "never: reading takes no less than the model"
    if n_runs <= 1:
        return "from the first SAE run on"
    return f"from {n_runs:,} SAE runs on"


def size(n_bytes: float) -> str:
    """Return bytes for people: `5 B`, `1.5 GB`."""
    if n_bytes < 1000:
        return f"{n_bytes:,.0f} B"
    for unit in ("kB", "MB", "GB"):
        n_bytes /= 1000
        if n_bytes < 1000:
            return f"{n_bytes:,.1f} {unit}"
    return f"{n_bytes / 1000:,.1f} TB"


def duration(seconds: float) -> str:
    """Return seconds for people: `90.0 s`, `5.0 min`, `2.5 h`."""
    if seconds < 120:
        return f"{seconds:,.1f} s"
    if seconds < 7200:
        return f"{seconds / 60:,.1f} min"
    return f"{seconds / 3600:,.1f} h"
