"""Files and folders that refuse: through the real command lines, each gives a message
with the path, and exit code 1.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from actstore.console import cli_errors
from tests.cli.test_bad_input import refused
from tests.cli.test_boundary import failing
from tests.support import make_store

Cli = Callable[..., tuple[int, str, str]]
# linux/capability.h
CAPABILITY_VERSION, CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH = 0x20080522, 1 << 1, 1 << 2
HARVEST = (
    "--model",
    "builtin:tiny",
    "--sites",
    "blocks.0.hook_mlp_out",
    "--tokens",
    "1k",
    "--context",
    "32",
)
TRAIN = (
    "--sae",
    "topk",
    "--k",
    "2",
    "--expansion",
    "2",
    "--batch",
    "64",
    "--rows",
    "64",
)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """A folder whose folders can be entered again in the end, so that it can be
    removed.
    """
    yield tmp_path
    for path in [tmp_path, *tmp_path.iterdir()]:
        path.chmod(0o700)


@contextlib.contextmanager
def common_user() -> Iterator[None]:
    """Root may do everything: tests of permissions take from this thread, and those it
    starts, the right to.
    """
    if os.geteuid() != 0:
        yield
        return
    libc, header, sets = (
        ctypes.CDLL(None),
        (ctypes.c_uint32 * 2)(CAPABILITY_VERSION, 0),
        (ctypes.c_uint32 * 6)(),
    )
    assert libc.capget(header, sets) == 0
    effective = sets[0]
    sets[0] = effective & ~(CAP_DAC_OVERRIDE | CAP_DAC_READ_SEARCH)
    assert libc.capset(header, sets) == 0
    try:
        yield
    finally:
        sets[0] = effective
        assert libc.capset(header, sets) == 0


def closed(path: Path) -> str:
    """Nobody may read, write or enter it."""
    path.chmod(0)
    return str(path)


def run_of(store: str, place: Path, cli: Cli) -> Path:
    out = place / "run"
    assert cli("trainer", "train", "--store", store, "--out", str(out), *TRAIN)[0] == 0
    return out


@pytest.mark.parametrize("kind", ["text", "jsonl", "parquet", "folder", "dataset"])
@pytest.mark.parametrize("command", ["harvest", "plan"])
def test_a_corpus_that_may_not_be_read(
    kind: str, command: str, place: Path, cli: Cli
) -> None:
    corpus = place / f"corpus.{kind}"
    if kind in {"folder", "dataset"}:
        corpus.mkdir()
        (corpus / ("state.json" if kind == "dataset" else "a.txt")).write_text(
            "some text"
        )
    else:
        corpus.write_text("some text")
    if kind == "dataset":
        closed(corpus / "state.json")
    else:
        closed(corpus)
    out = ("--out", str(place / "out")) if command == "harvest" else ()
    with common_user():
        # the library has no words for it
        said = () if kind == "dataset" else ("Permission denied",)
        refused(
            cli("actstore", command, *HARVEST, "--corpus", str(corpus), *out),
            str(corpus),
            *said,
        )


def test_models_token_lists_and_specs_that_may_not_be_read(
    place: Path, cli: Cli
) -> None:
    model, words, spec = place / "model", place / "ids.txt", place / "spec.yaml"
    model.mkdir()
    words.write_text("1\n")
    spec.write_text("store: x\n")
    given = ("actstore", "plan", *HARVEST, "--corpus", "builtin:stdlib")
    for path in (model, words, spec):
        closed(path)
    with common_user():
        refused(cli(*given, "--model", str(model)), str(model))
        refused(cli(*given, "--exclude-tokens", str(words)), str(words))
        refused(
            cli("trainer", "train", "--spec", str(spec), "--out", str(place / "r")),
            str(spec),
            "ermission",
        )
    refused(cli(*given, "--exclude-tokens", str(place)), str(place), "directory")
    refused(
        cli("trainer", "train", "--spec", str(place), "--out", str(place / "r")),
        str(place),
        "folder",
    )
    refused(
        cli("trainer", "sweep", str(place), "--out", str(place / "r")),
        str(place),
        "folder",
    )


def test_a_store_that_may_not_be_read(place: Path, cli: Cli) -> None:
    store = make_store(place / "store", n_units=2)
    shard = place / "store" / "acts" / store.sites[0] / "c" / "0" / "0"
    closed(shard)
    with common_user():
        code, out, err = cli("actstore", "verify", store.url)
        assert (code, "Traceback" in err) == (1, False)
        assert f"{shard}: Permission denied" in out
        refused(
            cli(
                "trainer",
                "train",
                "--store",
                store.url,
                "--out",
                str(place / "r"),
                *TRAIN,
            ),
            str(shard),
            "ermission",
        )
    closed(place / "store")
    with common_user():
        for command in ("info", "norms", "verify"):
            refused(cli("actstore", command, store.url), store.url)


def test_places_that_may_not_be_written(place: Path, cli: Cli) -> None:
    store = make_store(place / "store", n_units=24)
    run = run_of(store.url, place, cli)
    shut = place / "shut"
    shut.mkdir()
    lines = (
        (
            "actstore",
            "harvest",
            *HARVEST,
            "--corpus",
            "builtin:stdlib",
            "--out",
            str(shut / "s"),
        ),
        ("actstore", "norms", store.url, "--plot", str(shut / "norms.html")),
        ("trainer", "train", "--store", store.url, "--out", str(shut / "r"), *TRAIN),
        ("trainer", "report", str(run), "--out", str(shut / "report.html")),
        ("trainer", "export", str(run), str(shut / "e")),
    )
    assert cli("trainer", "eval", str(run))[0] == 0
    for folder in (shut, run):
        folder.chmod(0o555)
    with common_user():
        for line in lines:
            refused(cli(*line), str(shut), "ermission")
        refused(cli("trainer", "eval", str(run)), str(run), "ermission")
    assert not list(shut.iterdir())


def test_folders_where_files_are_wanted_and_the_other_way_round(
    place: Path, cli: Cli
) -> None:
    store = make_store(place / "store", n_units=24)
    run = run_of(store.url, place, cli)
    file, folder = place / "file", place / "folder"
    file.write_text("mine")
    folder.mkdir()
    wants_file: tuple[tuple[str, ...], ...] = (
        ("actstore", "norms", store.url, "--plot", str(folder)),
        ("trainer", "report", str(run), "--out", str(folder)),
    )
    for line in wants_file:
        refused(cli(*line), str(folder), "is a folder, wanted a file")
    for out in (file, file / "deeper"):
        wants_folder: tuple[tuple[str, ...], ...] = (
            (
                "actstore",
                "harvest",
                *HARVEST,
                "--corpus",
                "builtin:stdlib",
                "--out",
                str(out),
            ),
            ("actstore", "norms", store.url, "--plot", str(out / "norms.html")),
            ("trainer", "train", "--store", store.url, "--out", str(out), *TRAIN),
            ("trainer", "report", str(run), "--out", str(out / "report.html")),
            ("trainer", "export", str(run), str(out)),
        )
        for line in wants_folder:
            refused(cli(*line), str(file))
    assert file.read_text() == "mine"
    assert not list(folder.iterdir())


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.EBADF, "Bad file descriptor"),
        OSError(errno.EINVAL, "Invalid argument", "/x"),
        OSError("no number"),
        KeyError("x"),
        ValueError("x"),
    ],
)
def test_bugs_keep_their_traceback(
    error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["x"])
    with pytest.raises(type(error)):
        cli_errors.run(failing(error))


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            PermissionError(errno.EACCES, "Permission denied", "/a/b"),
            "error: /a/b: Permission denied; check who may ",
        ),
        (
            OSError(errno.ENOSPC, "No space left on device"),
            "error: No space left on device; the disk is full",
        ),
        (
            FileExistsError(errno.EEXIST, "File exists", "/a", None, "/b"),
            "error: /a -> /b: File exists; ",
        ),
        (
            ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused"),
            "error: Connection refused; check the net",
        ),
        (TimeoutError("timed out"), "error: timed out; check the network"),
    ],
)
def test_what_the_user_can_mend_is_a_message(
    error: OSError,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["x"])
    with pytest.raises(SystemExit) as stop:
        cli_errors.run(failing(error))
    err = capsys.readouterr().err
    assert stop.value.code == 1
    assert err.startswith(said)
    assert cli_errors.DEBUG in err
    monkeypatch.setenv(cli_errors.DEBUG, "1")
    with pytest.raises(type(error)):
        cli_errors.run(failing(error))
