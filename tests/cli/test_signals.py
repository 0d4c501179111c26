"""SIGINT and SIGTERM end a harvest in good order, and the same command goes on."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

from tests.cli import process
from tests.cli.test_harvest import objects, words

Cli = Callable[..., tuple[int, str, str]]


def test_sigint_and_sigterm_leave_a_hint_and_a_store_to_go_on_with(
    cli: Cli, tmp_path: Path
) -> None:
    """Two workers in real processes, each stopped after some units; the store ends with
    the undisturbed one's bytes.
    """
    more = {"tokens": "14k", "batch": "1", "unit-sequences": "8"}
    out = tmp_path / "store"
    numbers = (signal.SIGINT, signal.SIGTERM)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.cli.process", "actstore.harvesting.harvest"])
    texts = [(tmp_path / f"{i}.out", tmp_path / f"{i}.err") for i in range(2)]
    workers = [
        context.Process(
            target=process.run,
            args=(words(out, "--json", "--worker", f"{i + 1}/2", **more), *texts[i]),
            daemon=True,
        )
        for i in range(2)
    ]
    for worker in workers:
        worker.start()

    def committed(i: int) -> int:
        return sum(int(path.stem) % 2 == i for path in (out / "units").glob("*.json"))

    began, waiting = time.monotonic(), [0, 1]
    while waiting:
        for i in [i for i in waiting if committed(i)]:
            os.kill(workers[i].pid or 0, numbers[i])
            waiting.remove(i)
        assert time.monotonic() - began < 60, [worker.exitcode for worker in workers]
        time.sleep(0.005)
    for i, worker in enumerate(workers):
        worker.join(60)
        lines, err = (path.read_text() for path in texts[i])
        assert worker.exitcode == 128 + numbers[i], err
        assert (
            "interrupted: what is committed is kept; run the same command again"
            in " ".join(err.split())
        )
        assert "Traceback" not in err
        assert [json.loads(line)["stage"] for line in lines.splitlines()][:2] == [
            "starting up",
            "loading the model",
        ]
        assert 0 < committed(i) < 27
    assert not (out / "manifest.json").exists()
    assert not list(out.rglob(".tmp-*"))
    assert cli(*words(out, **more))[0] == 0
    assert cli(*words(tmp_path / "whole", **more))[0] == 0
    assert objects(out) == objects(tmp_path / "whole")
