"""The files of `deploy/`, and what their command lines are without the systems they are
for: scripts run in a shell where our programs only tell how they were called.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

import actstore.cli
import trainer.cli
from tests.cli.conftest import command_group

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
APPS = {"actstore": actstore.cli.app, "trainer": trainer.cli.app}
# Others that the scripts call; `source` of an environment finds nothing to do.
CALLED = ("actstore", "trainer", "torchrun", "pip")


class Reached(Exception):  # noqa: N818 - not an error: the command began its work
    """A command has read its options, and would begin its work with this."""

    def __init__(self, *what: Any) -> None:
        super().__init__()
        self.what = what


class Unique(yaml.SafeLoader):
    """Reads YAML, and refuses a mapping that names a key twice."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        assert len(set(keys)) == len(keys), f"a key is there twice: {keys}"
        return super().construct_mapping(node, deep)


def template(name: str) -> dict[str, Any]:
    """A YAML file of `deploy/`."""
    loaded: dict[str, Any] = yaml.load((DEPLOY / name).read_text(), Unique)
    return loaded


def tool(name: str, *words: str) -> subprocess.CompletedProcess[str]:
    """A program of the virtual environment, run to its end; skips without it."""
    path = Path(sys.executable).parent / name
    if not path.exists():
        pytest.skip(f"{name} is not installed; pip install '.[dev]' brings it")
    return subprocess.run(
        [path, *words], capture_output=True, text=True, check=False, cwd=ROOT
    )


def calls(
    words: Sequence[str], folder: Path, environment: Mapping[str, str]
) -> list[list[str]]:
    """Run a command, and return how it called our programs, one list for each call."""
    programs = folder / "home" / "actstore" / "bin"
    if not programs.exists():
        _fake_programs(programs, folder / "calls")
    done = subprocess.run(
        list(words),
        env={
            "PATH": f"{programs}:/usr/bin:/bin",
            "HOME": str(folder / "home"),
            **environment,
        },
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    told = folder / "calls"
    lines = told.read_text().splitlines() if told.exists() else []
    told.unlink(missing_ok=True)
    return [json.loads(line) for line in lines]


def _fake_programs(programs: Path, told: Path) -> None:
    programs.mkdir(parents=True)
    (programs / "activate").write_text("")
    writes = (
        f"#!{sys.executable}\nimport json, os, sys\n"
        f"with open({str(told)!r}, 'a') as file:\n"
        "    words = [os.path.basename(sys.argv[0]), *sys.argv[1:]]\n"
        "    file.write(json.dumps(words) + '\\n')\n"
    )
    bodies = dict.fromkeys(CALLED, writes)
    bodies["python3"] = "#!/bin/sh\n"  # makes an environment that is there already
    bodies["srun"] = '#!/bin/sh\nexec "$@"\n'
    # More names than a pipe holds: a reader that leaves after the first is noticed.
    bodies["scontrol"] = "#!/bin/sh\nseq -f node-%g 20000\n"
    for name, body in bodies.items():
        (programs / name).write_text(body)
        (programs / name).chmod(0o755)


def under_torchrun(words: Sequence[str]) -> list[str]:
    """What torchrun is told to start, by torchrun's own parser."""
    from torch.distributed.run import get_args_parser

    known = get_args_parser().parse_args(list(words[1:]))
    assert known.module
    return [known.training_script, *known.training_script_args]


def check_command(words: Sequence[str], monkeypatch: pytest.MonkeyPatch) -> Reached:
    """Read a command line as its command does, up to where the work would begin.

    Options have to exist, and their values have to make a valid spec.
    """
    from actstore.harvesting import harvest
    from trainer.training import train

    def began(*arguments: Any, **named: Any) -> None:
        raise Reached(*arguments, named)

    def training(read_spec: Any, out: str, settings: Any) -> None:
        raise Reached(read_spec(), out, settings)

    monkeypatch.setattr(harvest, "harvest", began)
    monkeypatch.setattr(train, "train_one", training)
    program, *rest = words
    group = command_group(APPS[program])
    assert rest[0] in group.commands, words
    if rest[0] in {"harvest", "train"}:
        with pytest.raises(Reached) as reached:
            group.main(rest, program, standalone_mode=False)
        return reached.value
    parse(group, rest)
    return Reached()


def parse(group: Any, words: Sequence[str]) -> None:
    """Read the options of a command (of a group's too) without starting it."""
    name, *rest = words
    command = group.commands[name]
    if hasattr(command, "commands"):
        parse(command, rest)
    else:
        command.make_context(name, list(rest))


def renamed_keys(whole: Any, free: Sequence[str]) -> Iterator[tuple[str, Any]]:
    """Yield copies of nested values, in each of which another key is misspelt.

    free: Keys below which names are the user's own, such as `labels`.
    """
    for path in _paths(whole, free):
        copy = json.loads(json.dumps(whole))
        level = copy
        for step in path[:-1]:
            level = level[step]
        level[f"{path[-1]}x"] = level.pop(path[-1])
        yield ".".join(map(str, path)), copy


def unnoticed(
    check: Callable[[Any], None], whole: Any, free: Sequence[str], least: int
) -> list[str]:
    """Return the keys of nested values that can be misspelt without a check failing.

    least: How many keys there have to be.
    """
    missed = []
    misspelt = list(renamed_keys(whole, free))
    assert len(misspelt) >= least
    for where, changed in misspelt:
        try:
            check(changed)
        except (AssertionError, KeyError, kubernetes_validate.ValidationError):
            continue
        missed.append(where)
    return missed


def _paths(level: Any, free: Sequence[str]) -> Iterator[tuple[Any, ...]]:
    steps: Any = level.items() if isinstance(level, dict) else ()
    if isinstance(level, list):
        steps = enumerate(level)
    for step, below in steps:
        if isinstance(level, dict):
            yield (step,)
        if step not in free:
            yield from ((step, *path) for path in _paths(below, free))


def wrong(value: Any, shape: Any, where: str = "") -> list[str]:
    """Say where nested values are not of a shape.

    A shape is a type, a tuple of types, a set of values, a list of one shape, a dict
    of shapes by key (`!` after a key that must be there; `*` for any key), or a
    function that returns whether a value will do.
    """
    if isinstance(shape, dict):
        if not isinstance(value, dict):
            return [f"{where}: keys and values wanted, got {value!r}"]
        shapes = {key.rstrip("!"): inner for key, inner in shape.items()}
        found = [
            f"{where}.{key}: it is missing"
            for key in (key[:-1] for key in shape if key.endswith("!"))
            if key not in value
        ]
        for key, inner in value.items():
            if key not in shapes and "*" not in shapes:
                found.append(f"{where}.{key}: there is no such key")
            else:
                expected = shapes.get(key, shapes.get("*"))
                found += wrong(inner, expected, f"{where}.{key}")
        return found
    if isinstance(shape, list):
        if not isinstance(value, list):
            return [f"{where}: a list wanted, got {value!r}"]
        return [
            one
            for i, inner in enumerate(value)
            for one in wrong(inner, shape[0], f"{where}[{i}]")
        ]
    if isinstance(shape, set):
        return [] if value in shape else [f"{where}: {value!r} is not in {shape}"]
    if isinstance(shape, type | tuple):
        kinds = shape if isinstance(shape, tuple) else (shape,)
        is_right = isinstance(value, shape) and not (
            isinstance(value, bool) and bool not in kinds
        )
    else:
        is_right = shape(value)
    return [] if is_right else [f"{where}: {value!r} will not do"]


def clean_environment() -> dict[str, str]:
    """The environment with our programs on its path."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT)}
