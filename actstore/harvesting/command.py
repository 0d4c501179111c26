"""`actstore harvest`: the command line's function. Importing it loads typer only."""

from __future__ import annotations

import contextlib
import json
import signal
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from actstore.harvesting.harvest import Progress

REPORT_EVERY_S = 10.0


def harvest_command(
    model: Annotated[
        str, typer.Option(help="builtin:tiny, builtin:mini, a folder in Hugging Face layout, or a hub name.")
    ],
    corpus: Annotated[
        str,
        typer.Option(
            help="builtin:stdlib, text, JSONL or Parquet files (folders, globs, URLs), a saved data set, a hub name."
        ),
    ],
    sites: Annotated[
        list[str], typer.Option(help="TransformerLens hook names; `*` and {0..5} are patterns. May be given again.")
    ],
    tokens: Annotated[str, typer.Option(help="Tokens to run: 300k, 1M, 2.5B.")],
    out: Annotated[str, typer.Option(help="Where the store goes: a folder or any fsspec URL.")],
    context: Annotated[int, typer.Option(help="Tokens per sequence.")] = 128,
    batch: Annotated[int, typer.Option(help="Sequences per forward pass.")] = 32,
    dtype: Annotated[str, typer.Option(help="Stored values: bfloat16, float16, float32 or int8.")] = "bfloat16",
    codec: Annotated[str, typer.Option(help="lz4, zstd or raw.")] = "lz4",
    pack: Annotated[bool, typer.Option(help="Fill contexts from consecutive documents, or one document each.")] = True,
    prepend_bos: Annotated[
        bool | None, typer.Option(help="BOS before every context; default: as the model's tokenizer does.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the rows' permutation.")] = 0,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...")] = "cpu",
    memory: Annotated[str, typer.Option(help="What units in flight may take: 4GiB, 500MB.")] = "4GiB",
    model_dtype: Annotated[str, typer.Option(help="The model's weights: float32, bfloat16 or float16.")] = "float32",
    revision: Annotated[str | None, typer.Option(help="Of the model on the hub.")] = None,
    corpus_kind: Annotated[str, typer.Option(help="auto, builtin, text, jsonl, parquet, dataset or hub.")] = "auto",
    corpus_revision: Annotated[str | None, typer.Option(help="Of the data set on the hub.")] = None,
    corpus_config: Annotated[str | None, typer.Option(help="Configuration of the data set on the hub.")] = None,
    split: Annotated[str, typer.Option(help="Of a data set.")] = "train",
    text_column: Annotated[str, typer.Option(help="Column with the documents.")] = "text",
    token_column: Annotated[str | None, typer.Option(help="Column with token ids, if tokenised already.")] = None,
    unit_sequences: Annotated[int | None, typer.Option(help="Sequences per unit, instead of the planned size.")] = None,
    chunk_rows: Annotated[int | None, typer.Option(help="Rows per chunk, instead of the planned size.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Progress as JSON lines on standard output.")] = False,
) -> None:
    """Run a language model over a corpus and keep its activations. The same command resumes an unfinished harvest."""
    from actstore.harvesting.specs import parse_count, parse_size, resolve_spec

    spec = resolve_spec(
        {
            "model": {"name": model, "revision": revision, "dtype": model_dtype},
            "corpus": {
                "name": corpus,
                "kind": corpus_kind,
                "revision": corpus_revision,
                "config": corpus_config,
                "split": split,
                "text_column": text_column,
                "token_column": token_column,
            },
            "sites": tuple(sites),
            "tokens": parse_count(tokens),
            "context": context,
            "pack": pack,
            "prepend_bos": prepend_bos,
            "batch": batch,
            "dtype": dtype,
            "codec": codec,
            "seed": seed,
            "memory": parse_size(memory),
            "unit_sequences": unit_sequences,
            "chunk_rows": chunk_rows,
        }
    )
    _run(spec, out, device, as_json=as_json)


def _run(spec: Any, out: str, device: str, *, as_json: bool) -> None:
    """Harvest with a bar; print what came of it."""
    from rich.console import Console

    from actstore.allocator import keep_freed_memory

    keep_freed_memory()
    console = Console(stderr=True)
    shown = _json_lines() if as_json else _bar(console) if console.is_terminal else _plain_lines(console)
    began = time.monotonic()
    try:
        with _terminable(), shown as report, _warnings_on(console):
            report("starting up", None)
            from actstore.harvesting.harvest import harvest

            store = harvest(spec, out, device=device, progress=lambda now: report(now.stage, now))
    except KeyboardInterrupt:
        console.print(
            "[yellow]interrupted[/]: what is committed is kept; run the same command again, it goes on from there"
        )
        raise typer.Exit(130) from None
    found = store.manifest
    console.print(
        f"{store.url}: {found.n_rows:,} rows of {len(found.sites)} sites in {found.n_units} units, "
        f"{found.n_bytes / 1e6:,.1f} MB, {time.monotonic() - began:.0f} s",
        highlight=False,
    )


Shown = Any  # a context manager that gives report(stage, Progress or None)


@contextlib.contextmanager
def _bar(console: Any) -> Iterator[Any]:
    """A rich progress bar for a terminal."""
    from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} % {task.fields[figures]}"),
        TimeRemainingColumn(compact=True),
    )
    with Bar(*columns, console=console, transient=True) as bar:
        task = bar.add_task("starting up", total=None, figures="")
        rate = _Rate()

        def report(stage: str, now: Progress | None) -> None:
            if now is None or not now.n_tokens:
                bar.update(task, description=stage)
                return
            figures = f"{rate(now):,.0f} tokens/s, unit {now.units}/{now.n_units}"
            bar.update(task, description=stage, total=now.n_tokens, completed=now.tokens, figures=figures)

        yield report


@contextlib.contextmanager
def _plain_lines(console: Any) -> Iterator[Any]:
    """A line now and then, where there is no terminal."""
    rate, last = _Rate(), time.monotonic()

    def report(_stage: str, now: Progress | None) -> None:
        nonlocal last
        if now is None or not now.n_tokens or time.monotonic() - last < REPORT_EVERY_S:
            return
        last = time.monotonic()
        speed = rate(now)
        left = (now.n_tokens - now.tokens) / speed if speed else 0
        console.print(
            f"{now.tokens:,}/{now.n_tokens:,} tokens, {speed:,.0f} tokens/s, unit {now.units}/{now.n_units}, "
            f"{left:,.0f} s left",
            highlight=False,
        )

    yield report


@contextlib.contextmanager
def _json_lines() -> Iterator[Any]:
    """One JSON object per second at most, for schedulers."""
    rate, last, shown = _Rate(), 0.0, ""

    def report(stage: str, now: Progress | None) -> None:
        nonlocal last, shown
        if stage == shown and time.monotonic() - last < 1:
            return
        last, shown = time.monotonic(), stage
        figures = {**now._asdict(), "tokens_per_s": round(rate(now), 1)} if now else {"stage": stage}
        sys.stdout.write(json.dumps(figures) + "\n")
        sys.stdout.flush()

    yield report


class _Rate:
    """Tokens per second of this run, from the first report with tokens on."""

    def __init__(self) -> None:
        self._start: tuple[float, int] | None = None

    def __call__(self, now: Progress) -> float:
        if self._start is None:
            self._start = (time.monotonic(), now.tokens)
        elapsed = time.monotonic() - self._start[0]
        return (now.tokens - self._start[1]) / elapsed if elapsed > 0 else 0.0


@contextlib.contextmanager
def _warnings_on(console: Any) -> Iterator[None]:
    """HarvestWarnings in the console's words; the libraries' own warnings stay silent."""
    import warnings

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    for one in caught:
        if one.category.__name__ == "HarvestWarning":
            console.print(f"[yellow]note[/]: {one.message}", highlight=False)


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM ends a harvest as Ctrl-C does: the unit being written is finished first."""

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
