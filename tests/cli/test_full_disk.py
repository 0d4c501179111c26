"""A disk that is really full: harvests and training runs on a small tmpfs, in processes
of their own, then resumed.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import actstore
from actstore.errors import NotAStoreError, UnfinishedError
from actstore.format.manifest import read_plan
from actstore.format.storage import Storage
from actstore.format.zarr_metadata import metadata_files, readme
from tests.cli.test_harvest import objects, words
from tests.support import make_store
from trainer.training import checkpoint

Cli = Callable[..., tuple[int, str, str]]
PAGE = 4096
ENOUGH = 64 << 20
SHARES = (0.0, 0.6, 0.97)


class Step(NamedTuple):
    """One command on the small disk: its size in bytes (fresh: an empty one), where its
    folder is copied to then.
    """

    line: list[str]
    size: int
    fresh: bool
    copy: str


class Done(NamedTuple):
    code: int
    err: str


@cache
def namespace() -> list[str]:
    """The command that lets us mount something that only we see; skips the test where
    none does.
    """
    said = ""
    for flags in ("-m", "-rm"):
        line = ["unshare", flags, "sh", "-c", "mount -t tmpfs -o size=64k tmpfs /mnt"]
        found = subprocess.run(line, capture_output=True, text=True, check=False)
        if found.returncode == 0:
            return ["unshare", flags]
        said = found.stderr.strip()
    pytest.skip(f"no tmpfs can be mounted here: {said}")


def on_small_disk(disk: Path, steps: list[Step]) -> list[Done]:
    """Run steps one after the other with a tmpfs at `disk`, each in a process of its
    own.
    """
    disk.mkdir()
    done = subprocess.run(
        [*namespace(), sys.executable, "-m", "tests.cli.small_disk", str(disk), json.dumps(steps)],
        capture_output=True, text=True, check=False, timeout=240, env={**os.environ, "COLUMNS": "400"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [Done(*one) for one in json.loads(done.stdout)]


def room(of: dict[str, bytes]) -> int:
    """Bytes that objects take on a tmpfs: whole pages."""
    return sum(-(-len(data) // PAGE) * PAGE for data in of.values())


def refused(done: Done, disk: Path) -> str:
    """What a command said about the full disk."""
    err = " ".join(done.err.split())
    assert done.code == 1, err
    assert "Traceback" not in err
    assert "No space left on device; the disk is full" in err
    assert f"that at {disk}, " in err
    return err


def harvesting(out: Path) -> list[str]:
    return words(out, model="builtin:tiny")


@pytest.mark.slow
def test_harvests_whose_disk_fills_up_go_on_when_there_is_room(
    cli: Cli, tmp_path: Path
) -> None:
    """At the plan, half-way, at the very end; resumed on the disk made larger, and in a
    copy.
    """
    assert cli(*harvesting(tmp_path / "whole"))[0] == 0
    whole, disk = objects(tmp_path / "whole"), tmp_path / "disk"
    sizes = [max(PAGE, int(room(whole) * share) // PAGE * PAGE) for share in SHARES]
    steps = [
        Step(harvesting(disk / "store"), size, True, str(tmp_path / f"{size}"))
        for size in sizes
    ]
    steps.insert(
        2, Step(harvesting(disk / "store"), ENOUGH, False, str(tmp_path / "after"))
    )
    done = on_small_disk(disk, steps)
    after = done.pop(2)
    for share, size, full in zip(SHARES, sizes, done, strict=True):
        said, partial = refused(full, disk), tmp_path / f"{size}"
        assert (
            "then run the same command again: what is committed is kept, it goes on from there"
            in said
        )
        left = objects(partial)
        assert not list(partial.rglob(".tmp-*"))
        # Nothing half-written, under its own name or another's; a group lists what is
        # below it from the end on, and the card has then taken the place of a page.
        begun = {}
        if "plan.json" in left:
            plan = read_plan(Storage(str(partial)))
            begun = {**metadata_files(plan), "README.md": readme(plan)}
        assert [
            key
            for key, data in left.items()
            if data not in {whole[key], begun.get(key)}
        ] == []
        assert "manifest.json" not in left
        assert (len(left) > 30) == (share > 0)
        with pytest.raises(UnfinishedError if "plan.json" in left else NotAStoreError):
            actstore.open(partial)
    assert after.code == 0, after.err
    assert objects(tmp_path / "after") == whole
    assert cli(*harvesting(partial))[0] == 0
    assert objects(partial) == whole


TRAIN = (
    "--sae",
    "topk",
    "--k",
    "4",
    "--expansion",
    "8",
    "--batch",
    "64",
    "--rows",
    "2k",
    "--log-every",
    "2",
)


def training(store: str, out: Path, *more: str) -> list[str]:
    return [
        "trainer",
        "train",
        "--store",
        store,
        "--out",
        str(out),
        *TRAIN,
        "--checkpoint-every",
        "8",
        *more,
    ]


def compared(out: Path) -> dict[str, bytes]:
    """A run's objects but its journal, which tells speeds, when and where it began, and `latents`, which keep
    the process' random state.
    """
    found = {
        key: data
        for key, data in objects(out).items()
        if "latents" not in key and key not in {"journal.jsonl", "machine.json"}
    }
    for key in ("sae.json", "store.json"):  # where the store lies from the run's folder
        found[key] = re.sub(rb'"store_path": "[^"]*"', b"", found[key])
    return found


def journal(out: Path) -> list[dict[str, Any]]:
    """A run's records, without its speed."""
    lines = map(json.loads, (out / "journal.jsonl").read_text().splitlines())
    return [
        {k: v for k, v in line.items() if k not in {"rows_per_s", "stall"}}
        for line in lines
    ]


def test_runs_whose_disk_fills_up_go_on_from_their_last_whole_checkpoint(
    cli: Cli, tmp_path: Path
) -> None:
    store, disk = make_store(tmp_path / "store", n_units=24).url, tmp_path / "disk"
    line, small = training(store, disk / "run"), tmp_path / "small"
    assert cli(*training(store, tmp_path / "whole"))[0] == 0
    final = objects(tmp_path / "whole")
    before, last = checkpoint.steps(Storage(str(tmp_path / "whole")))
    one = room({key: data for key, data in final.items() if f"{last:08}" in key})
    # the good checkpoint, and how many the disk can hold
    cases, steps = {0: 0.5, 8: 1.5, before - 8: 2.5}, []
    for kept, holds in cases.items():
        steps += [
            Step(line, int(holds * one) + 2 * PAGE, True, f"{small}-{kept}"),
            Step([*line, "--resume"], ENOUGH, False, f"{small}-{kept}-after"),
        ]
    done = on_small_disk(disk, steps)
    for kept, full, after in zip(cases, done[::2], done[1::2], strict=True):
        said, partial = refused(full, disk), Path(f"{small}-{kept}")
        assert "then run the same command with --resume" in said
        good = checkpoint.steps(Storage(str(partial)))
        assert good[-1:] == ([kept] if kept else [])
        wanted = (
            rf"checkpoint of step {kept}\b"
            if kept
            else "no checkpoint yet, it begins again"
        )
        assert re.search(wanted, said)
        begun = {path.name for path in (partial / "checkpoints").iterdir()} - {
            f"step-{n:08}" for n in good
        }
        assert len(begun) == 1  # and taken for none
        assert not list(partial.rglob(".tmp-*"))
        assert after.code == 0, after.err
        resumed = Path(f"{small}-{kept}-after")
        assert compared(resumed) == compared(tmp_path / "whole")
        assert journal(resumed) == journal(tmp_path / "whole")
