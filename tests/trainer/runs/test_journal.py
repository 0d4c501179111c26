"""The journal: whole lines only, whatever ended the process; elsewhere than in a folder
written now and then.
"""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actstore.format.storage import Storage
from schemas.records import StepRecord
from trainer.runs.journal import Journal, read


def record(step: int) -> StepRecord:
    figures = dict.fromkeys(
        ("loss", "mse", "l0", "fvu", "lr", "rows_per_s", "stall"), 0.1
    )
    return StepRecord(
        step=step,
        rows=step * 64,
        dead=3,
        layers={"blocks.0": None, "übrig": 0.5},
        **figures,
    )


def of_steps(*steps: int) -> list[StepRecord]:
    return [record(step) for step in steps]


def test_lines_are_there_as_they_come(tmp_path: Path) -> None:
    storage = Storage(tmp_path / "run")
    one = Journal(storage)
    for i, step in enumerate((5, 10, 15)):
        one.add(record(step))
        one.flush()
        assert read(storage) == of_steps(5, 10, 15)[: i + 1]
    before = (tmp_path / "run/journal.jsonl").stat().st_ino
    one.add(record(20))
    one.write()
    assert (tmp_path / "run/journal.jsonl").stat().st_ino == before, (
        "it grows, it is not written again"
    )
    assert read(storage) == of_steps(5, 10, 15, 20)


@pytest.mark.parametrize("url", ["folder", "memory"])
@given(cut=st.integers(0, 2000), resumed=st.sampled_from([0, 10, 15, 20]))
def test_what_a_killed_process_left_of_a_line_is_not_read_and_goes(
    url: str, cut: int, resumed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    storage = Storage(
        "memory://journal-cut" if url == "memory" else tmp_path_factory.mktemp("cut")
    )
    data = "".join(
        one.model_dump_json() + "\n" for one in of_steps(5, 10, 15, 20)
    ).encode()
    storage.put("journal.jsonl", data[: max(0, len(data) - cut)])
    left = read(storage)
    assert left == of_steps(5, 10, 15, 20)[: len(left)]
    assert len(left) == data[: max(0, len(data) - cut)].count(b"\n")
    one = Journal(storage, resumed)
    kept = [record for record in left if record.step <= resumed]
    one.add(record(25))
    one.write()
    one.add(record(30))
    one.write()
    assert read(storage) == [*kept, *of_steps(25, 30)]


def test_elsewhere_it_is_written_now_and_then_and_with_each_checkpoint(
    memory_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage, now = Storage(f"{memory_url}/run"), [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    one, seen = Journal(storage), []
    for step in range(1, 11):
        one.add(record(step))
        one.flush()
        seen.append(len(read(storage)))
        now[0] += 10.0
    assert seen == [1, 1, 1, 4, 4, 4, 7, 7, 7, 10]
    one.add(record(11))
    one.write()
    assert len(read(storage)) == 11


def test_a_slow_place_is_written_to_less_often(
    memory_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage, now = Storage(f"{memory_url}/run"), [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    real, puts = storage.put, []

    def put(key: str, data: bytes) -> None:
        puts.append(now[0])
        now[0] += 5.0
        real(key, data)

    monkeypatch.setattr(storage, "put", put)
    one = Journal(storage)
    for step in range(400):
        one.add(record(step))
        one.flush()
        now[0] += 1.0
    assert len(puts) == 5, "5 s are 5 % of 100 s"
