"""The cursor's arithmetic against a plain list of all elements, batch by batch."""

from __future__ import annotations

from typing import NamedTuple

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from actstore.stream.cursor import Cursor, Position, Stretch

Element = tuple[int, int]


class Case(NamedTuple):
    """Epochs of these numbers of elements, over and over; what is asked of them."""

    lengths: tuple[int, ...]
    batch_rows: int
    skip_rows: int
    limit_rows: int | None
    epochs: int | None

    def length(self, epoch: int) -> int:
        return self.lengths[epoch % len(self.lengths)]

    def cursor(self) -> Cursor:
        return Cursor(
            self.length,
            batch_rows=self.batch_rows,
            epochs=self.epochs,
            epochs_are_alike=len(self.lengths) == 1,
            skip_rows=self.skip_rows,
            limit_rows=self.limit_rows,
        )

    def batches(self, epochs: int) -> list[list[Element]]:
        """The plain truth: the batches of some epochs, cut to skip and limit."""
        stop = None if self.limit_rows is None else self.skip_rows + self.limit_rows
        wanted = set(self.elements(epochs)[self.skip_rows : stop])
        batches = []
        for epoch in range(epochs):
            every = [(epoch, element) for element in range(self.length(epoch))]
            for first in range(0, len(every), self.batch_rows):
                batch = every[first : first + self.batch_rows]
                batches.append([element for element in batch if element in wanted])
        return [batch for batch in batches if batch]

    def elements(self, epochs: int) -> list[Element]:
        """All elements of some epochs, in order."""
        return [
            (epoch, element)
            for epoch in range(epochs)
            for element in range(self.length(epoch))
        ]


cases = st.builds(
    Case,
    lengths=st.lists(st.integers(1, 15), min_size=1, max_size=3).map(tuple),
    batch_rows=st.integers(1, 20),
    skip_rows=st.integers(0, 50),
    limit_rows=st.none() | st.integers(1, 60),
    epochs=st.integers(1, 6),
)
# More than any case skips or counts, where an epoch has one element.
MANY_EPOCHS = 200


def elements_of(stretch: Stretch) -> list[Element]:
    return [(stretch.epoch, i) for i in range(stretch.first, stretch.last)]


def delivered(cursor: Cursor) -> list[list[Element]]:
    """What a stream delivers from where it stands."""
    batches = []
    while (stretch := cursor.next_stretch()) is not None:
        batches.append(elements_of(stretch))
        cursor.advance()
    return batches


@given(cases)
def test_batches_are_those_of_the_plain_list(case: Case) -> None:
    assert case.epochs is not None
    assert delivered(case.cursor()) == case.batches(case.epochs)


@given(cases)
def test_after_the_last_batch_there_is_none_however_often_one_asks(case: Case) -> None:
    cursor = case.cursor()
    delivered(cursor)
    assert [cursor.next_stretch() for _ in range(3)] == [None] * 3


@given(cases)
def test_asking_twice_gives_the_same_batch(case: Case) -> None:
    cursor = case.cursor()
    assert cursor.next_stretch() == cursor.next_stretch()


@given(cases)
def test_another_cursor_goes_on_from_any_batch(case: Case) -> None:
    assert case.epochs is not None
    batches = case.batches(case.epochs)
    assume(batches)
    cursor = case.cursor()
    for n_delivered in range(len(batches) + 1):
        assert cursor.has(cursor.epoch, cursor.batch)
        another = case.cursor()
        another.move_to(cursor.epoch, cursor.batch)
        assert delivered(another) == batches[n_delivered:]
        if cursor.next_stretch() is not None:
            cursor.advance()


@given(cases, st.integers(0, 40))
def test_rows_in_counts_the_first_batches_without_limit_or_end(
    case: Case, n_batches: int
) -> None:
    endless = case._replace(limit_rows=None, epochs=None)
    batches = endless.batches(MANY_EPOCHS)
    wanted = sum(len(batch) for batch in batches[:n_batches])
    assert endless.cursor().rows_in(n_batches) == wanted
    limited = endless._replace(limit_rows=case.limit_rows)
    assert limited.cursor().rows_in(n_batches) == wanted


@given(cases, st.integers(0, 50))
def test_after_is_the_element_of_that_number(case: Case, rows: int) -> None:
    endless = case._replace(epochs=None)
    assert endless.cursor().after(rows) == endless.elements(MANY_EPOCHS)[rows]
    assert case.epochs is not None
    elements = case.elements(case.epochs)
    if rows < len(elements):
        assert case.cursor().after(rows) == elements[rows]
    else:
        past_the_end = Position(case.epochs, rows - len(elements))
        assert case.cursor().after(rows) == past_the_end


@given(cases, st.integers(0, 5))
def test_an_epoch_has_its_elements_in_whole_batches_and_a_rest(
    case: Case, epoch: int
) -> None:
    cursor = case.cursor()
    assert cursor.elements_in(epoch) == case.length(epoch)
    borders = range(0, case.length(epoch), case.batch_rows)
    assert cursor.batches_in(epoch) == len(borders)
    assert cursor.has(epoch, len(borders))
    assert not cursor.has(epoch, len(borders) + 1)


@given(
    st.integers(1, 20),
    st.integers(0, 50),
    st.none() | st.integers(1, 60),
    st.integers(0, 40),
)
def test_while_a_harvest_goes_on_batches_come_without_end(
    batch_rows: int, skip_rows: int, limit_rows: int | None, n_batches: int
) -> None:
    cursor = Cursor(
        lambda _epoch: 7,  # what is planned bounds nothing
        batch_rows=batch_rows,
        epochs=1,
        epochs_are_alike=True,
        skip_rows=skip_rows,
        limit_rows=limit_rows,
        following=True,
    )
    assert cursor.rows_in(n_batches) == n_batches * batch_rows
    assert cursor.after(n_batches) == Position(0, n_batches)
    assert cursor.has(0, 1000)
    assert (cursor.elements_in(0), cursor.batches_in(0)) == (7, -(-7 // batch_rows))
    endless = Case((1000,), batch_rows, skip_rows, limit_rows, epochs=1)
    wanted = endless.batches(1)[:n_batches]
    got = []
    for _ in wanted:
        stretch = cursor.next_stretch()
        assert stretch is not None
        got.append(elements_of(stretch))
        cursor.advance()
    assert got == wanted
    if limit_rows is not None and len(wanted) < n_batches:
        assert cursor.next_stretch() is None


def test_the_example_in_the_module_is_right() -> None:
    case = Case((10,), batch_rows=4, skip_rows=5, limit_rows=11, epochs=None)
    stretches = [
        Stretch(epoch=0, first=5, last=8),
        Stretch(epoch=0, first=8, last=10),
        Stretch(epoch=1, first=0, last=4),
        Stretch(epoch=1, first=4, last=6),
    ]
    assert delivered(case.cursor()) == [elements_of(one) for one in stretches]
    assert case.cursor().rows_in(3) == 3 + 2 + 4


@pytest.mark.parametrize("alike", [True, False])
def test_each_epoch_is_counted_once_and_none_before_it_is_needed(alike: bool) -> None:
    asked = []

    def count(epoch: int) -> int:
        asked.append(epoch)
        return 10

    cursor = Cursor(count, batch_rows=4, epochs=3, epochs_are_alike=alike)
    assert asked == []
    assert len(delivered(cursor)) == 9
    assert len(set(asked)) == len(asked)
    assert set(asked) == ({0} if alike else {0, 1, 2})
