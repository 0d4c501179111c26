"""The place where a stream stands, and which elements come next: arithmetic alone.

A stream's rows are numbered through: the elements of epoch 0, those of epoch 1, and so
on. Batch b of an epoch is its elements [b B, (b + 1) B), as far as it has them.
`skip_rows` and `limit_rows` cut a stretch out of the whole sequence, without moving the
borders of its batches.

In numbers: epochs of 10 elements, batches of 4, 5 rows skipped, a limit of 11. The
batches are elements 5-7 and 8-9 of epoch 0, and 0-3 and 4-5 of epoch 1.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple


class Position(NamedTuple):
    """One element of a stream.

    Attributes:
        epoch: The epoch that it belongs to.
        element: Its number in that epoch.
    """

    epoch: int
    element: int


class Stretch(NamedTuple):
    """The elements [first, last) of an epoch."""

    epoch: int
    first: int
    last: int


class Cursor:
    """The place where a stream stands: the next batch, by epoch and number.

    Attributes:
        epoch: The epoch of the next batch.
        batch: Its number in that epoch. After an epoch's last batch it is the number of
            its batches, until the next one is asked for.
    """

    def __init__(
        self,
        count_elements: Callable[[int], int],
        *,
        batch_rows: int,
        epochs: int | None,
        epochs_are_alike: bool,
        skip_rows: int = 0,
        limit_rows: int | None = None,
        following: bool = False,
    ) -> None:
        """Stand at the first batch that has rows after `skip_rows`.

        Args:
            count_elements: Tells how many elements an epoch has; at least 1. Asked at
                most once for each epoch.
            batch_rows: Elements of a batch.
            epochs: How many epochs the stream has; None: no end.
            epochs_are_alike: Whether all epochs have as many elements as the first.
            skip_rows: Elements that are passed over at the stream's beginning.
            limit_rows: Elements that are delivered after those; None: all.
            following: Whether a harvest still adds rows, so that nobody knows where the
                one epoch ends; `count_elements` then tells what is planned.
        """
        self._count_elements = count_elements
        self._counted: dict[int, int] = {}
        self._batch_rows = batch_rows
        self._epochs = epochs
        self._epochs_are_alike = epochs_are_alike
        self._skip_rows = skip_rows
        self._limit_rows = limit_rows
        self._following = following
        self._start = self.after(skip_rows)
        self._end: Position | None = None
        self.epoch = self._start.epoch
        self.batch = self._start.element // batch_rows

    def elements_in(self, epoch: int) -> int:
        """Return the elements of an epoch; what is planned, while a harvest goes on."""
        counted_epoch = 0 if self._epochs_are_alike else epoch
        if counted_epoch not in self._counted:
            self._counted[counted_epoch] = self._count_elements(counted_epoch)
        return self._counted[counted_epoch]

    def batches_in(self, epoch: int) -> int:
        """Return the batches of an epoch; the last may be smaller than the others."""
        return -(-self.elements_in(epoch) // self._batch_rows)

    def has(self, epoch: int, batch: int) -> bool:
        """Return whether a stream can stand before a batch, or at an epoch's end."""
        return self._following or batch <= self.batches_in(epoch)

    def move_to(self, epoch: int, batch: int) -> None:
        """Stand before another batch."""
        self.epoch = epoch
        self.batch = batch

    def advance(self) -> None:
        """Go on by one batch."""
        self.batch += 1

    def next_stretch(self) -> Stretch | None:
        """Return the elements of the next batch; None after the last.

        Goes on to the next epoch where this one is used up.
        """
        if not self.has(self.epoch, self.batch + 1):
            self.move_to(self.epoch + 1, 0)
        if self._epochs is not None and self.epoch >= self._epochs:
            return None
        first = self.batch * self._batch_rows
        last = first + self._batch_rows
        if not self._following:
            last = min(last, self.elements_in(self.epoch))
        if self.epoch == self._start.epoch:
            first = max(first, self._start.element)
        end = self._end_of_limit()
        if end is not None and self.epoch > end.epoch:
            return None
        if end is not None and self.epoch == end.epoch:
            last = min(last, end.element)
        return Stretch(self.epoch, first, last) if first < last else None

    def after(self, rows: int) -> Position:
        """Return the element that comes after so many of the stream.

        Where the stream has fewer, its epoch is the one after the last.
        """
        # The first element, and any of a stream of one endless epoch, is known without
        # counting what an epoch has.
        if rows == 0 or self._following:
            return Position(0, rows)
        if self._epochs_are_alike:
            epoch = rows // self.elements_in(0)
            if self._epochs is not None:
                epoch = min(epoch, self._epochs)
            return Position(epoch, rows - epoch * self.elements_in(0))
        epoch = 0
        while epoch != self._epochs and rows >= self.elements_in(epoch):
            rows -= self.elements_in(epoch)
            epoch += 1
        return Position(epoch, rows)

    def rows_in(self, batches: int) -> int:
        """Return the rows of the stream's first batches, whatever its limit and epochs.

        The first one after `skip_rows` and the last one of an epoch may be smaller. In
        the example above, 3 batches have 3 + 2 + 4 rows. While a harvest goes on: at
        most so many.
        """
        if self._following:
            return batches * self._batch_rows
        epoch, first = self._start
        # Counted from the beginning of the epoch: the skipped batches too.
        batches += first // self._batch_rows
        rows = -first
        if self._epochs_are_alike:
            whole_epochs = batches // self.batches_in(epoch)
            rows += whole_epochs * self.elements_in(epoch)
            batches -= whole_epochs * self.batches_in(epoch)
        while batches > self.batches_in(epoch):
            rows += self.elements_in(epoch)
            batches -= self.batches_in(epoch)
            epoch += 1
        rows += min(batches * self._batch_rows, self.elements_in(epoch))
        # No batch at all has no rows, though the first one may begin before the skip's
        # end.
        return max(0, rows)

    def _end_of_limit(self) -> Position | None:
        """Return the element after the limit's last one; None without a limit."""
        if self._limit_rows is None:
            return None
        if self._end is None:
            self._end = self.after(self._skip_rows + self._limit_rows)
        return self._end
