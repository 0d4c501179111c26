"""A recipe: the specs and the commands that make one document's figures and tables."""

from __future__ import annotations

import glob
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field

from actstore.errors import first_line
from actstore.validation import validated
from schemas.base import Schema
from trainer.errors import RunError

HERE = Path(__file__).parent
PROGRAMS = ("actstore", "trainer")
_WORD = re.compile(r"\{([a-z_][a-z0-9_]*)\}")
_NUMBERS = re.compile(r"(\d+)")


class Step(Schema):
    """One command of a recipe."""

    run: str = Field(description="a command line of `actstore` or `trainer`")
    unless: str | None = Field(
        default=None, description="a file that is there once the command has been run"
    )
    each_seed: bool = Field(
        default=False, description="true: run for each of {seeds}, as {seed}"
    )


class Recipe(Schema):
    """The content of a recipe's file.

    In `specs` and `steps`, {folder} is the folder of all recipes, {out} that of this
    one, {specs} where its specs are written, {device} and {memory} what the user asked
    for, {seeds} the list of seeds ({seed} one of them, in steps), and any other {word}
    the value that a scale gives.
    """

    title: str = Field(description="what the report is called")
    text: str = Field(
        description="what the report says first: what the recipe shows, and what not"
    )
    scales: dict[str, dict[str, Any]] = Field(
        description="values of words by scale; the first is taken unless one is named"
    )
    specs: dict[str, Any] = Field(
        default={}, description="specs by name, written to {specs}/NAME.yaml"
    )
    steps: tuple[str | Step, ...] = Field(description="commands, in order")

    def every_step(self) -> tuple[Step, ...]:
        """Return the steps, each as a Step."""
        return tuple(
            Step(run=step) if isinstance(step, str) else step for step in self.steps
        )


def known_recipes() -> list[str]:
    """Return the names of the recipes that ship, in the order of the documents."""
    return sorted(path.stem for path in HERE.glob("*.yaml"))


def read_recipe(name: str) -> Recipe:
    """Return a recipe by its name, or by the path of its file.

    Raises:
        RunError: There is no such recipe, or its file is no YAML.
        SpecError: Its file is none.
    """
    path = Path(name) if name.endswith(".yaml") else HERE / f"{name}.yaml"
    if not path.is_file():
        raise RunError(
            f"which recipe? got {name}; there are {', '.join(known_recipes())}, or the"
            " path of a file that ends in .yaml"
        )
    try:
        content = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise RunError(f"{path}: no valid YAML ({first_line(error)})") from None
    return validated(Recipe, content, str(path))


def filled(value: Any, values: Mapping[str, Any]) -> Any:
    """Return a value of a recipe with its {words} filled in.

    A text that is one {word} alone becomes that word's value, whatever it is.

    Raises:
        RunError: A word has no value.
    """
    if isinstance(value, dict):
        return {key: filled(one, values) for key, one in value.items()}
    if isinstance(value, list):
        return [filled(one, values) for one in value]
    if not isinstance(value, str):
        return value
    alone = _WORD.fullmatch(value)
    if alone is not None:
        return _value_of(alone.group(1), values)
    return _WORD.sub(lambda word: str(_value_of(word.group(1), values)), value)


def _value_of(word: str, values: Mapping[str, Any]) -> Any:
    if word not in values:
        raise RunError(f"{{{word}}}: the recipe's scale gives no such value")
    return values[word]


def words_of(command: str) -> list[str]:
    """Return the words of a command line; patterns of run folders become those there.

    `runs/a/*` stands for the finished runs in `runs/a`, those of k=8 before k=16.

    Raises:
        RunError: A pattern matches no finished run, or the program is not ours.
    """
    program, *rest = shlex.split(command)
    if program not in PROGRAMS:
        raise RunError(f"{command}: wanted a command of {' or '.join(PROGRAMS)}")
    words = [program]
    for word in rest:
        is_pattern = "*" in word and "/" in word
        if not is_pattern:
            words.append(word)
        elif words[-1].startswith("--"):
            # An option that is given again for each run: --toy A --toy B.
            option = words.pop()
            words += [part for run in _runs(word) for part in (option, run)]
        else:
            words += _runs(word)
    return words


def _runs(pattern: str) -> list[str]:
    """Return the finished runs that a pattern matches, in natural order."""
    # Names of runs may have `[` in them; only the star is a pattern's.
    escaped = glob.escape(pattern).replace("[*]", "*")
    folders = [Path(folder) for folder in glob.glob(escaped)]  # noqa: PTH207 (a path that may be absolute)
    found = [str(folder) for folder in folders if (folder / "sae.json").exists()]
    if not found:
        raise RunError(f"{pattern}: no finished run is there")
    return sorted(found, key=_natural)


def _natural(name: str) -> list[tuple[int, int | str]]:
    """Return a key that sorts numbers in names by their size."""
    parts = _NUMBERS.split(name)
    return [(0, int(part)) if part.isdigit() else (1, part) for part in parts]
