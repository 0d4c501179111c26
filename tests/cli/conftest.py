"""The command lines, run in this process."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable

import pytest
import typer.core
import typer.main

import actstore.cli
import trainer.cli

Cli = Callable[..., tuple[int, str, str]]
# What Typer makes of an app at each call, for a twentieth of a second: here once.
made_once = functools.cache(typer.main.get_command)


def command_group(app: typer.Typer) -> typer.core.TyperGroup:
    """The commands of a command line, as Typer makes them of the app."""
    group = typer.main.get_command(app)
    assert isinstance(group, typer.core.TyperGroup)
    return group


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    """Runs a command line in this process: (exit code, stdout, stderr)."""

    def run(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", list(words))
        monkeypatch.setattr(typer.main, "get_command", made_once)
        main = {"actstore": actstore.cli.main, "trainer": trainer.cli.main}[words[0]]
        code = 0
        try:
            main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        out, err = capsys.readouterr()
        return code, out, err

    return run
