"""Which queued runs form the next pass on a slot; pure, so that it can be tested.

**Who is first.** Higher priority first. Among runs of the same priority users take
turns: first comes whoever has had the least of the slots lately, what they hold now
counted with it. Among the runs of a user the one that was submitted first.

**Who comes along.** The first run is the reason why a pass begins. Other runs that can
read the data with it join in the same order, as long as the slot's memory holds them
all. They lengthen the pass by their own computing, and save a reading of the data. So
that nobody else pays for that:

- Whoever joins is charged for a part of the pass' time, and waits for the next turn
  the longer. Time is charged by runs: three runs of a pass of four pay three quarters.
- A run does not join ahead of one of higher priority that has to wait.
- While another user's run waits that cannot join, at most `MOST_BESIDE_OTHERS` runs
  form a pass, so that the wait is bounded by a few runs' time.
- Where several slots are free and nothing else wants them, runs that could share a pass
  are spread over the slots.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

from schemas.service import SlotState
from trainer.queue.queue_records import WaitingRun
from trainer.queue.slots import Slot

# What a pass is taken to last for its users, beyond what it has lasted: seconds.
AHEAD_S = 600.0
MOST_RUNS = 64
MOST_BESIDE_OTHERS = 8
# How many of the next runs are looked at for what they share.
LOOK_AHEAD = 1000

Shares = Callable[[WaitingRun], str]
"""Gives what is equal of runs that can read the data together."""


def next_pass(
    waiting: Sequence[WaitingRun],
    slot: Slot,
    had: Mapping[str, float],
    shares: Shares,
    n_free: int = 1,
) -> list[WaitingRun]:
    """Return the runs of the next pass on a slot; none where none fits on it.

    Args:
        waiting: The queued runs.
        slot: A slot that is free.
        had: What each user has had of the slots lately and holds now, as `counted`.
        shares: What is equal of runs that can share a pass.
        n_free: How many slots are free, this one included.
    """
    fitting = [run for run in waiting if run.memory_bytes <= slot.memory_bytes]
    ahead = [*itertools.islice(turns(fitting, had), LOOK_AHEAD)]
    if not ahead or ahead[0].alone:
        return ahead[:1]
    first = ahead[0]
    key = shares(first)
    joining, others = list[WaitingRun](), list[WaitingRun]()
    for run in ahead:
        can_join = not run.alone and shares(run) == key
        (joining if can_join else others).append(run)
    if others:
        highest = max(run.priority for run in others)
        joining = [run for run in joining if run is first or run.priority >= highest]
    passes = {_key(run, shares) for run in others}
    users = {run.user for run in others}
    if len(ahead) < len(fitting):
        # whoever's turn is further off waits as well, whatever it is for
        users |= {run.user for run in fitting}
        passes |= users - {first.user}
    most = min(MOST_RUNS, _spread(len(joining), len(passes), n_free))
    if len(passes) >= n_free and users - {first.user}:
        most = min(most, MOST_BESIDE_OTHERS)
    return _filled(joining, slot.memory_bytes, most)


def counted(
    slot_times: Mapping[str, float], holding: Mapping[str, float]
) -> dict[str, float]:
    """Return what users have had, what they hold now counted with it, in seconds.

    Args:
        slot_times: What each has had lately, in seconds of a slot.
        holding: How many slots each holds.
    """
    return {
        user: slot_times.get(user, 0.0) + AHEAD_S * holding.get(user, 0.0)
        for user in {*slot_times, *holding}
    }


def turns(
    waiting: Iterable[WaitingRun], had: Mapping[str, float]
) -> Iterator[WaitingRun]:
    """Give runs in the order in which they begin, were each to begin at once."""
    of_user: dict[tuple[int, str], list[WaitingRun]] = defaultdict(list)
    for run in sorted(waiting, key=lambda run: -run.number):
        of_user[run.priority, run.user].append(run)
    heap = [
        (-priority, had.get(user, 0.0), runs[-1].number, user)
        for (priority, user), runs in of_user.items()
    ]
    heapq.heapify(heap)
    while heap:
        minus_priority, seconds, _, user = heapq.heappop(heap)
        runs = of_user[-minus_priority, user]
        yield runs.pop()
        if runs:
            after = (minus_priority, seconds + AHEAD_S, runs[-1].number, user)
            heapq.heappush(heap, after)


def shared_memory(runs: Collection[WaitingRun]) -> int:
    """Return the bytes that runs take which share a pass.

    Each has its own weights and optimiser. Steps come one after the other, and the rows
    are the same: of these the largest counts.
    """
    own = sum(run.state_bytes for run in runs)
    return own + max((run.memory_bytes - run.state_bytes for run in runs), default=0)


def waits_for(
    memory_bytes: int, slots: Sequence[Slot | SlotState], n_taken: int
) -> str:
    """Return why a queued run does not begin yet, in words.

    Args:
        memory_bytes: What it takes alone.
        slots: All slots.
        n_taken: How many of them are taken.
    """
    largest = max((slot.memory_bytes for slot in slots), default=0)
    if memory_bytes > largest:
        return (
            f"it needs {memory_bytes / 1e9:.2g} GB, and the largest slot has"
            f" {largest / 1e9:.2g} GB"
        )
    if n_taken >= len(slots):
        return "all slots are taken"
    return "it begins soon"


def _filled(
    joining: Sequence[WaitingRun], memory_bytes: int, most: int
) -> list[WaitingRun]:
    """Return those of the runs, in their order, that fit together."""
    runs: list[WaitingRun] = []
    for run in joining:
        if len(runs) >= most:
            break
        if shared_memory([*runs, run]) <= memory_bytes:
            runs.append(run)
    return runs


def _spread(n_joining: int, n_others: int, n_free: int) -> int:
    """Return how many runs a pass has if all free slots are to have one.

    n_others: passes that other runs would make.
    """
    slots_for_it = max(1, n_free - n_others)
    return math.ceil(n_joining / slots_for_it)


def _key(run: WaitingRun, shares: Shares) -> str:
    """Return what tells passes apart; a run that shares none is one of its own."""
    return run.id if run.alone else shares(run)
