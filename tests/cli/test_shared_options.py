"""Options that many commands share: they hold while a command runs, and are refused
where they would change nothing. No message repeats what was given.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

import actstore.cli
import trainer.cli
from actstore.console import shared_options
from actstore.console.cli_options import Command
from actstore.format.storage import Storage
from actstore.format.storage_options import options_for
from actstore.machine.command_values import STORAGE_OPTIONS
from tests.cli.conftest import Cli, command_group
from tests.support import make_store

SECRET = "not-to-be-seen"


def every_command(group: Any, name: str) -> dict[str, Any]:
    """The commands of a command line, and of the groups in it."""
    found: dict[str, Any] = {}
    for word, command in group.commands.items():
        if hasattr(command, "commands"):
            found |= every_command(command, f"{name} {word}")
        else:
            found[f"{name} {word}"] = command
    return found


COMMANDS = {
    **every_command(command_group(actstore.cli.app), "actstore"),
    **every_command(command_group(trainer.cli.app), "trainer"),
}


def test_commands_that_take_a_place_have_the_option() -> None:
    without = {
        name
        for name, command in COMMANDS.items()
        if not any(param.name == "storage_options" for param in command.params)
    }
    # These neither read nor write a store or a run,
    of_no_place = {"actstore plan", "actstore sites"}
    # and these ask a service, which does so with credentials of its own.
    of_a_service = {
        f"trainer {name}" for name in ("submit", "runs", "logs", "cancel", "resume")
    }
    assert without == of_no_place | of_a_service
    assert all(isinstance(command, Command) for command in COMMANDS.values())


@pytest.mark.parametrize("as_file", [False, True])
def test_it_holds_for_the_command_only(
    as_file: bool,
    cli: Cli,
    s3_url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    make_store(f"{s3_url}/store")
    endpoint = os.environ["AWS_ENDPOINT_URL"]
    # Nobody listens there: only the option can say where to go.
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    value = json.dumps(
        {"endpoint_url": endpoint, "key": "testing", "secret": "testing"}
    )
    if as_file:
        file = tmp_path / "options.json"
        file.write_text(value)
        value = str(file)
    monkeypatch.setenv(STORAGE_OPTIONS, "{}")
    words = ["actstore", "info", f"{s3_url}/store"]
    code, out, err = cli(*words, "--storage-options", value)
    assert (code, err) == (0, "")
    assert "content id" in out
    assert os.environ[STORAGE_OPTIONS] == "{}"


@pytest.mark.parametrize("command", ["cp", "push", "pull"])
def test_copies_take_it_for_either_place(
    command: str, cli: Cli, s3_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a catalog that lies elsewhere, too."""
    here, there = str(tmp_path / "store"), f"{s3_url}/store"
    make_store(here if command == "push" else there)
    places = [here, there] if command == "push" else [there, str(tmp_path / "copy")]
    endpoint = os.environ["AWS_ENDPOINT_URL"]
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    value = json.dumps({"endpoint_url": endpoint})
    code, _, err = cli("actstore", command, *places, "--storage-options", value)
    assert code == 0, err
    local = ["actstore", "cp", here, str(tmp_path / "another")]
    code, _, err = cli(*local, "--storage-options", value)
    assert (code, "does nothing for folders" in err) == (1, True)


@pytest.mark.parametrize(
    ("value", "word"),
    [
        (SECRET, "No such file"),
        (f"key={SECRET}", "No such file"),
        (f'{{"secret": "{SECRET}"', "no JSON"),
        (f'["{SECRET}"]', "does not begin with {"),
        (f'{{"s3://": "{SECRET}"}}', "holds an object"),
        ("x" * 5000 + SECRET, "too long"),
    ],
)
def test_a_bad_value_is_refused_and_not_repeated(
    value: str, word: str, cli: Cli
) -> None:
    code, out, err = cli("actstore", "info", "s3://b/s", "--storage-options", value)
    assert (code, out) == (1, "")
    assert err.startswith("error: --storage-options: wanted a JSON object") or (
        word == "holds an object"
    )
    assert word in err
    assert SECRET not in err
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(STORAGE_OPTIONS, value)
        code, out, err = cli("actstore", "info", "s3://b/s")
    assert code == 1
    assert err.startswith(f"error: {STORAGE_OPTIONS}: ")
    assert SECRET not in err


def test_where_it_would_change_nothing_it_is_refused(cli: Cli, tmp_path: Path) -> None:
    make_store(str(tmp_path / "s"))
    for place in (str(tmp_path / "s"), f"file://{tmp_path}/s"):
        code, _, err = cli("actstore", "info", place, "--storage-options", "{}")
        assert code == 1
        assert "--storage-options does nothing for folders of this machine" in err


def test_the_most_specific_options_win(monkeypatch: pytest.MonkeyPatch) -> None:
    value = {
        "anon": True,
        "key": "1",
        "s3://": {"key": "2"},
        "s3://bucket/": {"key": "3"},
    }
    monkeypatch.setenv(STORAGE_OPTIONS, json.dumps(value))
    assert options_for("hf://x", None) == {"anon": True, "key": "1"}
    assert options_for("s3://x", None) == {"anon": True, "key": "2"}
    assert options_for("s3://bucket/x", {}) == {"anon": True, "key": "3"}
    assert options_for("s3://bucket/x", {"key": "4"}) == {"anon": True, "key": "4"}


def test_local_places_have_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(STORAGE_OPTIONS, '{"anon": true}')
    assert Storage(tmp_path).options == {}


def test_the_table_is_sound() -> None:
    names = [shared.name for shared in shared_options.SHARED]
    variables = [shared.variable for shared in shared_options.SHARED]
    assert len(set(names)) == len(set(variables)) == len(names)
    assert all(variable.startswith("ACTSTORE_") for variable in variables)
