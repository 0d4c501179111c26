"""The boundary of both command lines: interrupts, debugging, a full disk, URLs that are
no paths, what commands load.
"""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import typer

import actstore.cli
from actstore.console import cli_errors
from actstore.errors import ActstoreError, StorageError
from schemas.harvest import HarvestSpec
from tests.support import make_store

HEAVY = (
    "torch",
    "transformers",
    "transformer_lens",
    "datasets",
    "zarr",
    "jinja2",
    "pandas",
    "pyarrow",
)


def failing(error: BaseException) -> typer.Typer:
    """An app whose only command raises."""
    app = typer.Typer(pretty_exceptions_enable=False)

    @app.command()
    def command() -> None:
        raise error

    return app


def outcome(app: typer.Typer, monkeypatch: pytest.MonkeyPatch) -> object:
    monkeypatch.setattr(sys, "argv", ["x"])
    with pytest.raises(SystemExit) as stop:
        cli_errors.run(app)
    return stop.value.code


def test_an_error_is_one_message(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert outcome(failing(ActstoreError("the reason")), monkeypatch) == 1
    assert capsys.readouterr() == ("", "error: the reason\n")


def test_debug_shows_the_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(cli_errors.DEBUG, "1")
    monkeypatch.setattr(sys, "argv", ["x"])
    with pytest.raises(ActstoreError, match="the reason"):
        cli_errors.run(failing(ActstoreError("the reason")))


def test_an_interrupt_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert outcome(failing(KeyboardInterrupt()), monkeypatch) == 130
    assert "Traceback" not in capsys.readouterr().err


def test_a_spec_that_does_not_validate_is_told_in_sentences(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ValueError, match="nonsense") as found:
        HarvestSpec.model_validate({"nonsense": 1, "tokens": 0})
    assert outcome(failing(found.value), monkeypatch) == 1
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert "nonsense: there is no such key" in err
    assert "tokens: " in err
    assert "pydantic" not in err


def test_a_full_disk_names_the_file_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(_fd: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="No space left"):
        make_store(tmp_path / "s", n_units=2)
    assert not [path for path in (tmp_path / "s").rglob("*") if path.is_file()]
    monkeypatch.undo()
    store = make_store(tmp_path / "t", n_units=2)
    monkeypatch.setattr(os, "fsync", full)
    monkeypatch.setattr(
        sys,
        "argv",
        ["actstore", "norms", store.url, "--plot", str(tmp_path / "norms.html")],
    )
    with pytest.raises(SystemExit):
        actstore.cli.main()
    assert "norms.html: No space left" in capsys.readouterr().err
    assert not (tmp_path / "norms.html").exists()


@pytest.mark.parametrize("where", ["memory_url", "s3_url"])
def test_cold_commands_take_any_url(
    where: str,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    root = request.getfixturevalue(where)
    store = make_store(f"{root}/store", n_units=3)
    wanted = {
        "info": store.manifest.content_id,
        "norms": store.sites[0],
        "verify": " 0 bad",
        "ls": store.manifest.content_id[:12],
    }
    for command, word in wanted.items():
        monkeypatch.setattr(
            sys, "argv", ["actstore", command, root if command == "ls" else store.url]
        )
        with pytest.raises(SystemExit) as stop:
            actstore.cli.main()
        assert not stop.value.code
        assert word in capsys.readouterr().out
    key = next(key for key in store.storage.list("acts") if "/c/" in key)
    store.storage.delete(key)
    monkeypatch.setattr(sys, "argv", ["actstore", "verify", store.url])
    with pytest.raises(SystemExit) as stop:
        actstore.cli.main()
    assert stop.value.code == 1
    assert key in capsys.readouterr().out


def test_no_number_of_the_norm_table_is_cut_off_in_a_pipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    store = make_store(tmp_path / "s", n_units=3)
    monkeypatch.setattr(sys, "argv", ["actstore", "norms", store.url])
    with pytest.raises(SystemExit):
        actstore.cli.main()
    assert "…" not in capsys.readouterr().out


def test_running_cold_commands_loads_nothing_heavy(tmp_path: Path) -> None:
    store = make_store(tmp_path / "s", n_units=3)
    for words in (
        ["--help"],
        ["info", store.url],
        ["ls", str(tmp_path)],
        ["norms", store.url],
        ["verify", store.url],
    ):
        script = (
            "import json, sys\n"
            "import actstore.cli\n"
            f"sys.argv = {['actstore', *words]!r}\n"
            "try:\n    actstore.cli.main()\nexcept SystemExit as stop:\n    assert not stop.code, stop.code\n"
            f"sys.stderr.write(json.dumps(sorted(set({HEAVY!r}) & set(sys.modules))))\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, check=True
        )
        assert json.loads(done.stderr.splitlines()[-1]) == [], words
