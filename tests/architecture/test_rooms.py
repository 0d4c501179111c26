"""Each folder imports only folders below it, and no module imports itself by way of
others, lazily or not.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
PACKAGES = ("schemas", "actstore", "trainer")

# What each folder (or module that lies beside the folders) may import, from the ground
# up.
GROUND = {
    "schemas",
    "actstore.errors",
    "actstore.arguments",
    "actstore.validation",
    "actstore.machine",
    "actstore.console",
}
BELOW_STORE = GROUND | {"actstore.format", "actstore.catalog"}
STORED = BELOW_STORE | {"actstore.cache", "actstore.store", "actstore.figures"}
HARVESTED = STORED | {
    "actstore.engines",
    "actstore.builtin",
    "actstore.text",
    "actstore.model",
    "actstore.harvesting",
}
# The trainer's rooms, each with what lies below it.
BELOW_KERNELS = HARVESTED | {"actstore.stream", "trainer.errors"}
BELOW_SAES = BELOW_KERNELS | {"trainer.kernels"}
BELOW_DISTRIBUTED = BELOW_SAES | {"trainer.saes"}
BELOW_RUNS = BELOW_DISTRIBUTED | {"trainer.distributed"}
BELOW_EVALUATION = BELOW_RUNS | {"trainer.runs"}
BELOW_TRAINING = BELOW_EVALUATION | {"trainer.evaluation"}
BELOW_EXPORTS = BELOW_TRAINING | {"trainer.analysis", "trainer.training"}
BELOW_REPORTS = BELOW_EXPORTS | {
    "trainer.exports",
    "trainer.imports",
    "trainer.stitching",
    "trainer.explorer",
    "actstore.inspect",
}
BELOW_COMMANDS = BELOW_REPORTS | {
    "trainer.reports",
    "trainer.client",
    "actstore.inspect",
}
MAY_IMPORT: dict[str, set[str]] = {
    "schemas": {"schemas"},
    "actstore.errors": set(),
    "actstore.arguments": {"schemas", "actstore.errors"},
    "actstore.validation": {"schemas", "actstore.errors"},
    "actstore.machine": set(),
    "actstore.console": GROUND | {"actstore"},
    "actstore.figures": GROUND | {"actstore.format"},
    "actstore.format": GROUND,
    "actstore.engines": GROUND,
    "actstore.catalog": BELOW_STORE,
    "actstore.cache": GROUND | {"actstore.format"},
    "actstore.store": STORED,
    "actstore.builtin": {"actstore.builtin"},
    "actstore.text": STORED | {"actstore.builtin"},
    "actstore.model": STORED,
    "actstore.harvesting": HARVESTED,
    "actstore.importing": HARVESTED,
    "actstore.sharing": HARVESTED,
    "actstore.stream": STORED,
    "actstore.inspect": STORED | {"actstore.stream"},
    "actstore.publishing": STORED | {"actstore", "actstore.inspect"},
    "actstore.recomputing": HARVESTED | {"actstore.stream", "actstore.inspect"},
    "trainer.errors": GROUND,
    # Who submits needs nothing of what trains.
    "trainer.client": GROUND | {"trainer.errors"},
    "trainer.kernels": BELOW_KERNELS,
    "trainer.saes": BELOW_SAES,
    "trainer.distributed": BELOW_DISTRIBUTED,
    "trainer.runs": BELOW_RUNS,
    "trainer.evaluation": BELOW_EVALUATION,
    "trainer.analysis": BELOW_TRAINING | {"actstore.inspect"},
    "trainer.training": BELOW_TRAINING,
    "trainer.exports": BELOW_EXPORTS,
    # What is exchanged has one neutral form and one set of file names.
    "trainer.imports": BELOW_EXPORTS | {"trainer.exports"},
    # Latents are moved in the neutral form that exchange has.
    "trainer.stitching": BELOW_EXPORTS | {"trainer.exports", "trainer.imports"},
    "trainer.explorer": BELOW_TRAINING | {"trainer.analysis", "trainer.exports"},
    "trainer.reports": BELOW_REPORTS,
    "trainer.recipes": BELOW_COMMANDS | {"trainer.cli", "actstore.cli"},
    "trainer.queue": BELOW_EXPORTS,
    "trainer.passes": BELOW_COMMANDS | {"trainer.queue"},
    "trainer.service": BELOW_COMMANDS
    | {"actstore.publishing", "trainer.queue", "trainer.passes"},
    "trainer.cli": BELOW_COMMANDS | {"trainer.service"},
    "trainer.demo": BELOW_COMMANDS,
    "trainer.service_demo": BELOW_COMMANDS | {"trainer.service", "trainer.passes"},
}
# `Store.stream` is for users: the one step from a lower folder to a higher one.
EXCEPTIONS = {("actstore.store.store", "actstore.stream")}


class Import(NamedTuple):
    """One module imports another, anywhere in it but for type checkers."""

    module: str
    imported: str


def modules() -> dict[str, Path]:
    """Every module of ours, by its dotted name."""
    found = {}
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            found[
                ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(
                    ".__init__"
                )
            ] = path
    return found


MODULES = modules()


def imports() -> Iterator[Import]:
    """Imports between our own modules."""
    for name, path in MODULES.items():
        tree = ast.parse(path.read_text())
        for node in set(ast.walk(tree)) - for_types_only(tree):
            for imported in names_in(node):
                if imported in MODULES and imported != name:
                    yield Import(name, imported)


def for_types_only(tree: ast.Module) -> set[ast.AST]:
    """Nodes below `if TYPE_CHECKING`."""
    guards = [
        n
        for n in ast.walk(tree)
        if isinstance(n, ast.If) and ast.unparse(n.test) == "TYPE_CHECKING"
    ]
    return {node for guard in guards for node in ast.walk(guard)}


def names_in(node: ast.AST) -> list[str]:
    """Modules that an import statement names."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if not isinstance(node, ast.ImportFrom) or node.module is None:
        return []
    whole = [f"{node.module}.{alias.name}" for alias in node.names]
    return [name if name in MODULES else node.module for name in whole]


def room_of(module: str) -> str:
    """The folder that a module lies in; its own name where it lies beside the folders.
    `schemas` is one room.
    """
    parts = module.split(".")
    return "schemas" if parts[0] == "schemas" else ".".join(parts[:2])


def is_excepted(one: Import) -> bool:
    return any(
        one.module == module and room_of(one.imported) == room
        for module, room in EXCEPTIONS
    )


def test_folders_import_only_what_is_below_them() -> None:
    found = list(imports())
    assert found
    for one in found:
        here, there = room_of(one.module), room_of(one.imported)
        if here in MAY_IMPORT and here != there and not is_excepted(one):
            assert there in MAY_IMPORT[here], f"{one.module} imports {one.imported}"


def test_each_exception_is_needed() -> None:
    found = list(imports())
    for module, room in EXCEPTIONS:
        assert any(
            one.module == module and room_of(one.imported) == room for one in found
        ), (module, room)


def test_no_module_imports_itself_by_way_of_others() -> None:
    below: dict[str, set[str]] = {name: set() for name in MODULES}
    for one in imports():
        if not is_excepted(one):
            below[one.module].add(one.imported)
    # Modules that import nothing that is left are taken away until none is: what stays
    # lies on a circle, or above one.
    while free := [name for name, others in below.items() if not others & below.keys()]:
        for name in free:
            del below[name]
    assert not below, f"a circle among {sorted(below)}"
