"""Tests that the commands of README.md and the guides exist.

Every command line of theirs is read by the command that it names.
"""

from __future__ import annotations

import ast
import re

import pytest

import actstore.cli
import trainer.cli
from tests.cli.conftest import command_group
from tests.readme.tour import (
    LEFT_OUT,
    all_commands,
    all_python_blocks,
    commands,
)

# Shown with what it prints elsewhere, or harmless.
SHELL = ("until ", "python -c ", "printf ")
CALL = re.compile(r"\b(actstore|trainer) ([a-z]+)((?: +(?!#)[^\n&;]+| *\\\n)*)")


# The commands of both command lines, by name.
APPS = {
    "actstore": command_group(actstore.cli.app).commands,
    "trainer": command_group(trainer.cli.app).commands,
}


def options_of(program: str, command: str) -> set[str]:
    params = APPS[program][command].params
    return {name for param in params for name in (*param.opts, *param.secondary_opts)}


@pytest.mark.parametrize("text", [command.text for command in all_commands()])
def test_each_command_and_option_exists(text: str) -> None:
    if text.startswith("HARVEST="):
        text = "actstore harvest " + text
    calls = CALL.findall(text)
    assert calls or text.startswith(SHELL), text
    for program, command, rest in calls:
        assert command in APPS[program], text
        given = set(re.findall(r"(?<=\s)--[a-z0-9-]+", rest.partition("#")[0]))
        assert given <= options_of(program, command), text


def test_the_documents_have_commands_and_python() -> None:
    found = all_commands()
    assert len(found) > 20
    # nothing is listed that is not there
    assert {command.left_out for command in found} == {None, *LEFT_OUT.values()}
    assert {command.document for command in found} >= {"README.md", "harvest.md"}
    blocks = all_python_blocks()
    assert len(blocks) >= 3
    for block in blocks:
        ast.parse(block)


def test_commands_go_on_over_lines() -> None:
    text = "x\n    $ a --b \\\n        --c\n    out\n    $ D=\"1\n         2\"\n    $ e 'f' # it's\n"
    assert [command.text for command in commands(text)] == [
        "a --b \\\n    --c",
        'D="1\n     2"',
        "e 'f' # it's",
    ]
