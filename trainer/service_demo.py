"""A training service to try: `python -m trainer.service_demo FOLDER [--port N]`.

It makes a small store in the folder, unless one is there, and serves it on 127.0.0.1
only. With `--check` a client submits the demo's run instead of a user, waits for it,
and opens its report; then the service ends.
"""

from __future__ import annotations

import argparse
import contextlib
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from rich.console import Console

from actstore.console import cli_errors
from trainer.client.service_client import ServiceClient
from trainer.errors import ServiceError

SPEC = """\
# The demo's run: what `trainer submit` and the page take.
store: {store}
sae: {{kind: topk, k: 16}}
rows: {rows}
log_every: 5
"""
TOKENS, TOKENS_OF_CHECK = "300k", "20k"
ROWS, ROWS_OF_CHECK = "1M", "40k"


class Demo(NamedTuple):
    """What the demo is made with.

    Attributes:
        folder: Where its store and its runs lie.
        port: The port of the service; 0 for any that is free.
        check: Whether a client does what a user would do.
    """

    folder: Path
    port: int
    check: bool


def main() -> None:
    """Make the store and serve it."""
    parser = argparse.ArgumentParser(prog="python -m trainer.service_demo")
    parser.add_argument("folder", type=Path, nargs="?", default=Path("serve-demo"))
    parser.add_argument("--port", type=int, default=8321)
    parser.add_argument("--check", action="store_true")
    demo = Demo(**vars(parser.parse_args()))
    if not demo.check:
        _serve(demo)
        return
    with tempfile.TemporaryDirectory() as folder:
        _check(demo._replace(folder=Path(folder)))


def _prepare(demo: Demo) -> Path:
    """Make the store, and the spec of the run; return the spec's file."""
    from actstore.harvesting.harvest_command import harvest_command

    folder = demo.folder.absolute()
    store = folder / "stores" / "demo"
    if not (store / "manifest.json").exists():
        harvest_command(
            model="builtin:tiny",
            corpus="builtin:stdlib",
            sites=["blocks.{2..3}.hook_mlp_out"],
            tokens=TOKENS_OF_CHECK if demo.check else TOKENS,
            out=str(store),
        )
    spec = folder / "run.yaml"
    rows = ROWS_OF_CHECK if demo.check else ROWS
    spec.write_text(SPEC.format(store=store, rows=rows))
    return spec


def _serve(demo: Demo) -> None:
    """Serve until Ctrl-C."""
    from trainer.service.serve_command import serve_command

    spec = _prepare(demo)
    port = demo.port or "PORT"
    Console(stderr=True).print(
        "\nOpen the link behind `service:` in a browser here: it logs you in."
        "\nOr from another shell, with the part behind `token=` as the token:"
        f"\n\n  export ACTSTORE_SERVICE=http://127.0.0.1:{port} ACTSTORE_TOKEN=..."
        f"\n  trainer submit {spec} --follow\n",
        highlight=False,
        soft_wrap=True,
    )
    folder = demo.folder
    serve_command(
        runs=str(folder / "runs"), stores=[str(folder / "stores")], port=demo.port
    )


def _check(demo: Demo) -> None:
    """Do what a user would do, and fail where it does not come out as it should."""
    spec = _prepare(demo)
    with _served(demo._replace(port=0)) as link:
        url, _, token = link.partition("/login#token=")
        with ServiceClient(url, token=token) as service:
            [run] = service.submit(spec, name="demo")
            for event in service.events(run.id):
                print(event.kind, event.text, flush=True)
            done = service.run(run.id)
            if done.state != "completed":
                raise ServiceError(f"the demo's run is {done.state}: {done.error}")
            page = service.report(run.id)
    if "<html" not in page or not (demo.folder / "runs/demo/sae.json").exists():
        raise ServiceError("the demo's run has no report")
    print(f"trained through the service; its report has {len(page):,} characters")


@contextlib.contextmanager
def _served(demo: Demo) -> Iterator[str]:
    """Start the service; gives the link that it prints."""
    process = subprocess.Popen(_command(demo), stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        link = ""
        for line in process.stdout:
            if line.startswith("service: "):
                link = line.removeprefix("service: ").strip()
                break
        if not link:
            raise ServiceError("the service did not start; see above why")
        yield link
    finally:
        process.send_signal(signal.SIGTERM)
        process.stdout.close()
        process.wait(60)


def _command(demo: Demo) -> list[str]:
    """Return the command that serves the demo's folder."""
    runs, stores = demo.folder / "runs", demo.folder / "stores"
    places = ["--runs", str(runs), "--stores", str(stores)]
    serve = [sys.executable, "-m", "trainer", "serve", "--device", "cpu"]
    return [*serve, *places, "--port", str(demo.port)]


if __name__ == "__main__":
    cli_errors.run(main)
