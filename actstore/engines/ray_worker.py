"""What runs in a process of Ray's: some work, which answers the driver's questions.

Ray brings this module's class to its processes by name; it needs no Ray itself.
"""

from __future__ import annotations

from importlib import import_module
from typing import Protocol

from actstore.machine.glibc_malloc import keep_freed_memory
from actstore.machine.torch_threads import wait_briefly

OURS = ("actstore.", "trainer.")


class Work(Protocol):
    """Work that goes on by itself, and says at once how far it has come.

    It is made from the JSON of its setup.
    """

    def answer(self, question: str) -> str:
        """Take a question and return the answer, both as JSON, within a second."""
        ...


class RayWorker:
    """A process of Ray's with some work in it."""

    def __init__(self, name: str, setup: str) -> None:
        """Begin the work.

        Args:
            name: The work's class, `module:Class`; a module of ours.
            setup: What it is made from, as JSON.
        """
        # Before torch is loaded.
        wait_briefly()
        keep_freed_memory()
        module, _, kind = name.partition(":")
        if not module.startswith(OURS):
            raise ValueError(f"{name} is no work of ours")
        self._work: Work = getattr(import_module(module), kind)(setup)

    def answer(self, question: str) -> str:
        """Pass a question on, and return the answer."""
        return self._work.answer(question)
