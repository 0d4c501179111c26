"""Which runs form the next pass: order, turns of users, and what fits."""

from __future__ import annotations

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.queue import schedule
from trainer.queue.queue_records import WaitingRun
from trainer.queue.schedule import (
    AHEAD_S,
    LOOK_AHEAD,
    MOST_BESIDE_OTHERS,
    MOST_RUNS,
    counted,
    next_pass,
    shared_memory,
    turns,
    waits_for,
)
from trainer.queue.slots import Slot

SLOT = Slot("cpu-0", "cpu", 1000, {})


def waiting(
    number: int, user: str = "ana", key: str = "k", **more: object
) -> WaitingRun:
    """A run; its store's name is what it must have in common with others."""
    values = {
        "number": number,
        "user": user,
        "priority": 0,
        "memory_bytes": 100,
        "state_bytes": 10,
        "alone": False,
        **more,
    }
    # what it shares with others stands before its number
    values["id"] = f"{key} {number}"
    return WaitingRun(**values)  # type: ignore[arg-type]


def shares(run: WaitingRun) -> str:
    return run.id.split()[0]


RUNS = st.lists(
    st.builds(
        waiting,
        number=st.just(0),
        user=st.sampled_from("abc"),
        key=st.sampled_from("xy"),
        priority=st.integers(-1, 1),
        memory_bytes=st.integers(50, 1100),
        state_bytes=st.integers(0, 50),
        alone=st.booleans(),
    ),
    max_size=20,
).map(
    lambda runs: [
        run._replace(number=i, id=f"{shares(run)} {i}") for i, run in enumerate(runs)
    ]
)
HAD = st.dictionaries(st.sampled_from("abc"), st.floats(0, 1e5))


@settings(deadline=None)
@given(RUNS, HAD, st.integers(1, 4))
def test_a_pass_is_in_order_and_fits(
    runs: list[WaitingRun], had: dict[str, float], n_free: int
) -> None:
    chosen = next_pass(runs, SLOT, had, shares, n_free)
    fitting = [run for run in runs if run.memory_bytes <= SLOT.memory_bytes]
    assert bool(chosen) == bool(fitting)
    if not chosen:
        return
    first = chosen[0]
    # priority, then who has had least, then who came first
    order = [(-run.priority, had.get(run.user, 0.0), run.number) for run in fitting]
    assert min(order) == (-first.priority, had.get(first.user, 0.0), first.number)
    assert len(set(chosen)) == len(chosen) <= MOST_RUNS
    assert shared_memory(chosen) <= SLOT.memory_bytes
    left = [run for run in fitting if run not in chosen]
    if len(chosen) > 1:
        assert not any(run.alone for run in chosen)
        assert len({shares(run) for run in chosen}) == 1
    joined = min(run.priority for run in chosen)
    for run in left:
        if run.alone or shares(run) != shares(first):
            assert run is not first
            assert joined >= run.priority or len(chosen) == 1


@settings(deadline=None)
@given(RUNS, HAD)
def test_turns_give_every_run_once(
    runs: list[WaitingRun], had: dict[str, float]
) -> None:
    given_order = list(turns(runs, had))
    assert sorted(run.number for run in given_order) == [run.number for run in runs]
    for user in "abc":
        for priority in (-1, 0, 1):
            numbers = [
                run.number
                for run in given_order
                if (run.user, run.priority) == (user, priority)
            ]
            assert numbers == sorted(numbers)
    priorities = [run.priority for run in given_order]
    assert priorities == sorted(priorities, reverse=True)


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 3), st.integers(1, 1000), st.floats(0, AHEAD_S), st.booleans())
def test_a_thousand_runs_of_one_do_not_hold_up_another(
    n_slots: int, came: int, seconds: float, same_data: bool
) -> None:
    """However many runs Ana has queued before, Ben's only run begins with the first or
    the second pass that begins after it came.
    """
    anas = [waiting(i) for i in range(1000)]
    bens = waiting(came + 2000, "ben", "k" if same_data else "other")
    had = {"ana": seconds}
    slots = [SLOT] * n_slots
    started: list[list[WaitingRun]] = []
    queue = [*anas, bens]
    for n_free in (1, 1):
        chosen = next_pass(queue, slots[0], had, shares, n_free)
        started.append(chosen)
        queue = [run for run in queue if run not in chosen]
        for user, n in Counter(run.user for run in chosen).items():
            had[user] = had.get(user, 0.0) + AHEAD_S * n / len(chosen)
    assert any(bens in chosen for chosen in started)


def test_turns_even_out_over_time() -> None:
    """Two users with endless runs have the same time, whatever shares a pass."""
    queue = [waiting(i) for i in range(600)]
    queue += [waiting(1000 + i, "ben", f"own-{i}") for i in range(200)]
    had = {"ana": 0.0, "ben": 0.0}
    for _ in range(60):
        chosen = next_pass(queue, SLOT, had, shares)
        queue = [run for run in queue if run not in chosen]
        for run in chosen:
            had[run.user] += 100.0  # each adds its own computing to a pass
    assert abs(had["ana"] - had["ben"]) <= 100.0 * MOST_BESIDE_OTHERS


def test_others_bound_a_pass() -> None:
    anas = [waiting(i) for i in range(100)]
    slot = SLOT._replace(memory_bytes=10**6)
    assert len(next_pass(anas, slot, {}, shares)) == MOST_RUNS
    ben = waiting(200, "ben", "other")
    assert len(next_pass([*anas, ben], slot, {}, shares)) == MOST_BESIDE_OTHERS
    # there is a slot for Ben's as well: nobody waits
    assert len(next_pass([*anas, ben], slot, {}, shares, n_free=2)) == MOST_RUNS


def test_lower_priority_does_not_join_ahead_of_a_higher_one() -> None:
    first = waiting(0, priority=2)
    low = waiting(1, priority=0)
    between = waiting(2, "ben", "other", priority=1)
    assert next_pass([first, low], SLOT, {}, shares) == [first, low]
    assert next_pass([first, low, between], SLOT, {}, shares) == [first]


def test_free_slots_are_all_used() -> None:
    queue = [waiting(i) for i in range(10)]
    sizes = []
    for n_free in (4, 3, 2, 1):
        chosen = next_pass(queue, SLOT, {}, shares, n_free)
        queue = [run for run in queue if run not in chosen]
        sizes.append(len(chosen))
    assert sizes == [3, 3, 2, 2]


def test_what_is_held_counts() -> None:
    """Of two free slots one user does not get both because neither has had any."""
    queue = [waiting(0, key="a"), waiting(1, key="b"), waiting(2, "ben", "c")]
    first = next_pass(queue, SLOT, counted({}, {}), shares, 2)
    second = next_pass(queue[1:], SLOT, counted({}, {"ana": 1.0}), shares, 1)
    assert [run.number for run in first + second] == [0, 2]


def test_long_queues_are_looked_at_in_part() -> None:
    queue = [waiting(i) for i in range(5 * LOOK_AHEAD)]
    queue.append(waiting(10**6, "ben", "other"))
    seen = list[str]()

    def noted(run: WaitingRun) -> str:
        seen.append(run.id)
        return shares(run)

    chosen = next_pass(queue, SLOT, {"ben": 1e9}, noted)
    assert len(set(seen)) <= LOOK_AHEAD
    # Ben's turn is far off, and still his wait is bounded
    assert len(chosen) == MOST_BESIDE_OTHERS


def test_memory_of_a_shared_pass() -> None:
    """Own weights add up; of steps and rows the largest counts."""
    assert shared_memory([waiting(0), waiting(1)]) == 10 + 10 + 90
    big = waiting(2, memory_bytes=500, state_bytes=300)
    assert shared_memory([waiting(0), big]) == 10 + 300 + 200


def test_why_a_run_waits() -> None:
    assert "needs 2e+03 GB" in waits_for(2 * 10**12, [SLOT], 0)
    assert waits_for(10, [SLOT], 1) == "all slots are taken"
    assert waits_for(10, [SLOT], 0) == "it begins soon"
    assert schedule.next_pass([], SLOT, {}, shares) == []
