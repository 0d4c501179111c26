"""What the README shows exists: every command line of it is read by the command that it
names.
"""

from __future__ import annotations

import ast
import re

import pytest
import typer.main

import actstore.cli
import trainer.cli
from tests.readme.tour import LEFT_OUT, README, commands, python_blocks

TEXT = README.read_text()
APPS = {
    "actstore": typer.main.get_command(actstore.cli.app),
    "trainer": typer.main.get_command(trainer.cli.app),
}
CALL = re.compile(r"\b(actstore|trainer) ([a-z]+)((?: +(?!#)[^\n&;]+| *\\\n)*)")


def options_of(program: str, command: str) -> set[str]:
    params = APPS[program].commands[command].params  # type: ignore[union-attr]
    return {name for param in params for name in (*param.opts, *param.secondary_opts)}


@pytest.mark.parametrize("text", [one.text for one in commands(TEXT)])
def test_each_command_and_option_exists(text: str) -> None:
    if text.startswith("HARVEST="):
        text = "actstore harvest " + text
    calls = CALL.findall(text)
    assert calls or text.startswith(("until ", "python -c ")), text
    for program, command, rest in calls:
        assert command in APPS[program].commands, text  # type: ignore[union-attr]
        given = set(re.findall(r"(?<=\s)--[a-z0-9-]+", rest.partition("#")[0]))
        assert given <= options_of(program, command), text


def test_the_readme_has_commands_and_python() -> None:
    found = commands(TEXT)
    assert len(found) > 15
    # nothing is listed that is not there
    assert {one.left_out for one in found} == {None, *LEFT_OUT.values()}
    assert len(python_blocks(TEXT)) >= 2
    for block in python_blocks(TEXT):
        ast.parse(block)


def test_commands_go_on_over_lines() -> None:
    text = "x\n    $ a --b \\\n        --c\n    out\n    $ D=\"1\n         2\"\n    $ e 'f' # it's\n"
    assert [one.text for one in commands(text)] == [
        "a --b \\\n    --c",
        'D="1\n     2"',
        "e 'f' # it's",
    ]
