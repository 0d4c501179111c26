"""Trains and evaluates all cases, one after the other, unless a result is there."""

from __future__ import annotations

import dataclasses
import datetime as dt
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from actstore.importing.known_features import KnownFeatures
from actstore.store.store import Store
from tests.benchmarks.peers.link import PeerError, note
from tests.benchmarks.quality.evaluate import Figures, calibrated, figures
from tests.benchmarks.quality.libraries import NAMES, OF_K, WITH_THRESHOLD, train
from tests.benchmarks.quality.records import Case, Result, Results
from tests.benchmarks.quality.rows import Setting, rows_file
from tests.benchmarks.quality.search import Point, at_l0, next_penalty

TRIES = 3  # penalties for each learning rate
# Multiples of the library's own learning rate to begin with, and the factor to one more
# where the best is at an end. Runs are short, so that peers' own rates are far too low:
# theirs is reached from 4 times that if that is better.
FACTORS = {
    "ours": (1.0, 2.0),
    "saelens": (4.0, 16.0),
    "dictionary_learning": (4.0, 16.0),
}
EDGE = {"ours": 2.0, "saelens": 4.0, "dictionary_learning": 4.0}
RATES = 5  # at most
# The first penalty to try, where a recipe differs so much from the default that the
# default's L0 says nothing.
FIRST = {("saelens", "jumprelu"): 0.3}


@dataclasses.dataclass
class Bench:
    """A store, what is trained from it, and where results go. `work` holds rows and the
    SAE that is being trained.
    """

    name: str
    store: Store
    known: KnownFeatures | None
    setting: Setting
    results: Results
    work: Path
    threads: int = 1

    def result(self, case: Case) -> Result | None:
        """Of the case, from the file or by running it; None, and a note, where the
        library fails at it.
        """
        found = self.results.get(case)
        if found is not None:
            return found
        note(
            f"{case.store} {case.library} {case.kind} {case.setting} seed {case.seed} lr {case.lr} {case.penalty}"
        )
        try:
            made = self._run(case)
        except PeerError as error:
            note(f"left out: {error}")
            return None
        self.results.add(made)
        note(
            f"  FVU {made.fvu:.4f} at L0 {made.l0:.1f}, reset {made.fvu_reset}, {made.seconds:.0f} s"
        )
        return made

    def _run(self, case: Case) -> Result:
        rows = None  # ours reads the store
        if case.library != "ours":
            rows = rows_file(self.store, self.name, self.setting, case.seed, self.work)
        # so that a process of each library can run
        out = self.work / "sae" / case.library
        began = time.perf_counter()
        trained = train(case, self.store, self.setting.batch, rows, out, self.threads)
        seconds = time.perf_counter() - began
        of_all = figures(trained.model, self.store, self.known)
        reset: Figures | None = None
        if case.kind in WITH_THRESHOLD:
            reset = figures(
                calibrated(trained.model, self.store, case.l0), self.store, self.known
            )
        best = reset or of_all
        return Result(
            case=case,
            version=trained.version,
            fvu=of_all.fvu,
            l0=of_all.l0,
            dead=of_all.dead,
            fvu_reset=reset.fvu if reset else None,
            l0_reset=reset.l0 if reset else None,
            **(best.recovery._asdict() if best.recovery else {}),
            used_lr=trained.used_lr,
            used_penalty=trained.used_penalty,
            seconds=round(seconds, 1),
            date=f"{dt.datetime.now(tz=dt.UTC):%Y-%m-%d}",
        )

    def case(
        self, library: str, kind: str, setting: str, seed: int = 0, **more: Any
    ) -> Case:
        """A case of this store; l0 is the setting's k."""
        values = {"l0": float(self.setting.k), **more}
        return Case(
            store=self.name,
            library=library,
            kind=kind,
            setting=setting,
            seed=seed,
            rows=self.setting.rows,
            n_latents=self.setting.n_latents,
            **values,
        )

    def default(self, library: str, kind: str, seeds: int) -> list[Result]:
        """What the library gives by itself."""
        cases = [self.case(library, kind, "default", seed) for seed in range(seeds)]
        return [made for case in cases if (made := self.result(case)) is not None]

    def at_peers(self, kind: str, seeds: int) -> None:
        """Ours steered to the L0 that a peer's default has, as far as there are results
        of it.
        """
        if kind in OF_K:
            return
        for peer in NAMES:
            cases = [self.case(peer, kind, "default", seed) for seed in range(seeds)]
            theirs = [
                made.l0
                for case in cases
                if (made := self.results.get(case)) is not None
            ]
            if theirs:
                for seed in range(seeds):
                    self.result(
                        self.case(
                            "ours",
                            kind,
                            "at_l0",
                            seed,
                            l0=round(statistics.mean(theirs), 1),
                        )
                    )

    def grid(self, library: str, kind: str) -> dict[float, list[Result]]:
        """By learning rate: the library's own and multiples of it, and more of them
        while the best is at the edge.
        """
        own = self.default(library, kind, 1)
        if not own or own[0].used_lr is None:
            return {}
        base, found = own[0].used_lr, {}
        start = (
            None
            if own[0].used_penalty is None
            else Point(own[0].used_penalty, own[0].l0, own[0].fvu)
        )
        if (library, kind) in FIRST:
            start = Point(FIRST[library, kind], self.setting.k, own[0].fvu)
        for factor in FACTORS[library]:
            found[base * factor] = self._at_rate(library, kind, base * factor, start)
            start = self._nearest(found[base * factor]) or start
        while len(found) < RATES and (more := self._beyond(library, found)) is not None:
            found[more] = self._at_rate(library, kind, more, start)
        return found

    def best(self, library: str, kind: str, seeds: int) -> list[Result]:
        """The grid's best, and the same with other seeds."""
        found = self.grid(library, kind)
        lr = best_rate(found, self.setting.k)
        if lr is None:
            return []
        result = min(found[lr], key=lambda one: abs(one.l0 - self.setting.k))
        cases = [
            result.case.model_copy(update={"setting": "best", "seed": seed})
            for seed in range(1, seeds)
        ]
        return [
            result,
            *(made for case in cases if (made := self.result(case)) is not None),
        ]

    def _at_rate(
        self, library: str, kind: str, lr: float, start: Point | None
    ) -> list[Result]:
        """One SAE; or, of a kind whose peer takes a penalty, one for each penalty on
        the way to the wanted L0.
        """
        scaled = library == "saelens" or (
            library == "dictionary_learning" and kind == "jumprelu"
        )
        more: dict[str, Any] = {
            "lr": float(f"{lr:.4g}"),
            "recipe": library != "ours",
            "normalise": scaled,
        }
        if kind in OF_K or library == "ours" or start is None:
            made = self.result(self.case(library, kind, "grid", **more))
            return [] if made is None else [made]
        found: list[Result] = []
        penalty: float | None = next_penalty([start], self.setting.k) or start.penalty
        while penalty is not None and len(found) < TRIES:
            made = self.result(
                self.case(
                    library, kind, "grid", penalty=float(f"{penalty:.3g}"), **more
                )
            )
            if made is None:
                break
            found.append(made)
            penalty = next_penalty(points(found), self.setting.k)
        return found

    def _nearest(self, found: list[Result]) -> Point | None:
        return min(
            points(found),
            key=lambda point: abs(point.l0 - self.setting.k),
            default=None,
        )

    def _beyond(self, library: str, found: dict[float, list[Result]]) -> float | None:
        """The next rate, where the best of those so far is the largest or the smallest."""
        best = best_rate(found, self.setting.k)
        tried = sorted(found)
        if best is None or tried[0] < best < tried[-1]:
            return None
        return best * EDGE[library] if best == tried[-1] else best / EDGE[library]


def points(found: list[Result]) -> list[Point]:
    """Those with a penalty, for the search."""
    return [
        Point(one.case.penalty, one.l0, one.fvu)
        for one in found
        if one.case.penalty is not None
    ]


def reached(found: list[Result], k: float) -> float | None:
    """FVU at the wanted L0 of runs that differ in their penalty only."""
    one = found[0] if found else None
    if one is None:
        return None
    if one.case.kind in OF_K:
        return one.fvu_reset or one.fvu
    if one.case.penalty is None:
        return one.fvu
    return at_l0(points(found), k)


def best_rate(found: dict[float, list[Result]], k: float) -> float | None:
    """The learning rate whose FVU at the wanted L0 is the least."""
    values = {
        lr: value
        for lr, some in found.items()
        if (value := reached(some, k)) is not None
    }
    return min(values, key=values.__getitem__, default=None)


def run(
    bench: Bench,
    libraries: list[str],
    kinds: list[str],
    settings: list[str],
    seeds: int,
) -> None:
    """All of it, defaults first."""
    for library, kind in _each(libraries, kinds):
        if "default" in settings:
            bench.default(library, kind, seeds)
    for library, kind in _each(libraries, kinds):
        if library == "ours" and "at_l0" in settings:
            bench.at_peers(kind, seeds)
        if "grid" in settings:
            bench.grid(library, kind)
        if "best" in settings:
            bench.best(library, kind, seeds)


def _each(libraries: list[str], kinds: list[str]) -> Iterator[tuple[str, str]]:
    for kind in kinds:
        for library in libraries:
            yield library, kind
