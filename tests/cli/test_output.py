"""Output of both command lines in processes of their own: any encoding, readers that
leave, a full disk, versions.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

import actstore
from actstore.console.cli_output import PLAIN, survive_any_encoding
from actstore.harvesting.progress import Progress
from actstore.harvesting.progress_display import progress_bar
from tests.support import make_store
from trainer.training.progress_display import bar

ROOT = Path(__file__).parents[2]
C_LOCALE = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0"}
ENCODINGS: dict[str, dict[str, str]] = {
    **{
        name: {"PYTHONIOENCODING": name}
        for name in ("latin-1", "ascii", "cp1252", "utf-8")
    },
    "C": {**C_LOCALE, "PYTHONUTF8": "0"},
}
NAME = "läyer→日本😀"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> actstore.Store:
    return make_store(tmp_path_factory.mktemp("out") / "store", n_units=3)


def started(
    words: list[Any], more: dict[str, str] | None = None, **streams: Any
) -> subprocess.Popen[bytes]:
    plain = {
        k: v
        for k, v in os.environ.items()
        if not k.startswith(("LC_", "LANG", "PYTHONIO", "PYTHONUTF8"))
    }
    env = {**plain, "PYTHONPATH": str(ROOT), "COLUMNS": "100", **(more or {})}
    program = [sys.executable, "-m", *words]
    return subprocess.Popen(
        program,
        env=env,
        cwd=ROOT,
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **streams},
    )


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_any_encoding_shows_the_table(encoding: str, store: actstore.Store) -> None:
    out, err = started(
        ["actstore", "norms", store.url], ENCODINGS[encoding]
    ).communicate()
    assert err == b""
    line = next(line for line in out.splitlines() if b"blocks.2.hook_mlp_out" in line)
    assert ("████████".encode() if encoding == "utf-8" else b"########") in line
    assert out.isascii() or encoding == "utf-8"


def test_any_encoding_shows_a_message(tmp_path: Path) -> None:
    name = os.fsencode(f"{tmp_path}/{NAME}")
    for encoding in ("latin-1", "cp1252", "C"):
        made = started(["actstore", "info", name], ENCODINGS[encoding])
        out, err = made.communicate()
        assert (made.returncode, out) == (1, b"")
        assert err.startswith(b"error: ")
        assert err.count(b"\n") == 1
        if encoding != "C":
            assert b"l\xe4yer>\\u65e5\\u672c\\ud83d\\ude00: " in err


@pytest.mark.parametrize(
    "words",
    [
        ["norms", "{}"],
        ["norms", "{}", "--json"],
        ["info", "{}"],
        ["ls", "{}"],
        ["verify", "{}"],
        ["--help"],
        ["doctor"],
    ],
)
def test_a_reader_that_leaves_ends_it_without_a_word(
    words: list[str], store: actstore.Store
) -> None:
    read, write = os.pipe()
    os.close(read)
    made = started(
        ["actstore", *(word.format(store.url) for word in words)], stdout=write
    )
    os.close(write)
    _, err = made.communicate()
    assert (made.returncode, err.strip()) == (1, b"")


@pytest.mark.slow
def test_a_reader_of_everything_that_leaves(
    store: actstore.Store, tmp_path: Path
) -> None:
    """As `2>&1 | head -1`: neither stream can say anything."""
    read, write = os.pipe()
    os.close(read)
    train = [
        "trainer",
        "train",
        "--store",
        store.url,
        "--out",
        str(tmp_path / "run"),
        "--sae",
        "topk",
        "--rows",
        "640",
    ]
    for words in (
        ["actstore", "info", "nowhere"],
        [*train, "--batch", "64", "--k", "2", "--expansion", "2"],
    ):
        made = started(words, stdout=write, stderr=write)
        assert made.wait() == 1
    os.close(write)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("command", ["norms", "info"])
def test_an_output_that_is_full_is_told(command: str, store: actstore.Store) -> None:
    with Path("/dev/full").open("wb") as full:
        made = started(["actstore", command, store.url], stdout=full)
        _, err = made.communicate()
    assert made.returncode == 1
    assert b"No space left on device" in err
    assert b"Traceback" not in err
    assert b"Exception ignored" not in err


def test_programs_say_their_version() -> None:
    made = [started([name, "--version"]) for name in ("actstore", "trainer")]
    assert [one.communicate() for one in made] == [
        (f"{name} {actstore.__version__}\n".encode(), b"")
        for name in ("actstore", "trainer")
    ]


def test_json_stays_json_in_any_encoding(monkeypatch: pytest.MonkeyPatch) -> None:
    for stream in ("stdout", "stderr"):
        monkeypatch.setattr(
            sys, stream, io.TextIOWrapper(io.BytesIO(), encoding="ascii")
        )
    survive_any_encoding()
    sys.stdout.write(json.dumps({"a": NAME}, ensure_ascii=False))
    sys.stdout.flush()
    assert json.loads(sys.stdout.buffer.getvalue())["a"] == NAME.replace("→", ">")


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
def test_bars_are_drawn_in_any_encoding(encoding: str) -> None:
    survive_any_encoding()
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors=PLAIN)
    console = Console(file=file, force_terminal=True, width=100)
    with progress_bar(console) as report:
        report(Progress("harvesting …", 50, 100, 1, 2))
    with bar(console) as (shown, _):
        shown.update(shown.task_ids[0], total=10, completed=5)
    with console.status("evaluating"):
        pass
    assert file.buffer.getvalue()
