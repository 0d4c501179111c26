"""The share of a plan's units that one worker harvests."""

from __future__ import annotations

import re
from dataclasses import dataclass

from actstore.errors import SpecError, StorageError
from actstore.format.storage import Storage
from schemas.harvest import Plan


@dataclass(frozen=True, slots=True)
class Share:
    """The units that are one worker's: those k with k mod `of` = `number`.

    Attributes:
        number: Which worker it is, counted from 0.
        of: How many workers there are.
    """

    number: int = 0
    of: int = 1

    @property
    def is_alone(self) -> bool:
        """Whether no other worker writes the store."""
        return self.of == 1

    @property
    def is_reader(self) -> bool:
        """Whether this worker reads the corpus for the others as well."""
        return self.number == 0

    @property
    def has_ended(self) -> bool:
        """Whether the worker is to end before its units do: never."""
        return False

    def of_plan(self, plan: Plan) -> range:
        """Return the units that are this worker's from the beginning on."""
        return self.units(plan)

    def passes_end(self, unit: int) -> bool:  # noqa: ARG002
        """Return whether to go on after a unit that the corpus does not reach."""
        return False

    def end(self) -> None:
        """Wake who waits for a unit: nobody does."""

    def units(self, plan: Plan) -> range:
        """Return the units of a plan that are this worker's.

        Worker 1 of 3, of a plan that begins with unit 5 and has 12: units 7 and 10.
        """
        # How far the first such unit lies above the plan's first one: for worker 1 of 3
        # and first unit 5, it is (1 - 5) mod 3 = 2.
        distance = (self.number - plan.first_unit) % self.of
        first = plan.first_unit + distance
        return range(first, plan.layout.n_units, self.of)


def parse_worker(text: str | None) -> Share:
    """Return the share that `i/n` stands for: `3/8` is the third of eight workers.

    None is the only worker.

    Raises:
        SpecError: The text is not `i/n`, or i is not from 1 to n.
    """
    if text is None:
        return Share()
    match = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", text)
    if match is not None:
        index = int(match[1])
        count = int(match[2])
        if 1 <= index <= count:
            return Share(index - 1, count)
    raise SpecError(
        f"worker {text!r}: wanted i/n with 1 <= i <= n, such as 3/8 for the third of"
        " eight"
    )


def check_shared(storage: Storage, share: Share) -> None:
    """Raise StorageError where several workers cannot share a store."""
    if share.of > 1 and not storage.is_exclusive():
        raise StorageError(
            f"{storage.url}: this place has no conditional create, or ignores the"
            " condition, so workers could overwrite each other's records; harvest there"
            " without --worker, one process at a time"
        )
