"""Markdown tables of results, for the README: what each library gives by default, and
the best of its grid.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from operator import attrgetter

from tests.benchmarks.quality.bench import points
from tests.benchmarks.quality.libraries import KINDS, OF_K
from tests.benchmarks.quality.records import Result
from tests.benchmarks.quality.search import Point, adjusted, at_l0

LIBRARIES = ("ours", "saelens", "dictionary_learning")
HEAD = "| kind | library | default | L0 | at L0 {k} | ours at that L0 | best lr | best at L0 {k} | dead |"
RECOVERY_HEAD = (
    "| kind | library | | MMCS | by frequency | F1 | F1 of latents | uniqueness |"
)
Rows = list[list[str]]
Way = tuple[float | None, bool, bool]  # learning rate, recipe, normalise


def tables(results: Sequence[Result]) -> str:
    """Of every store, number of rows and dictionary size that there are results of."""
    sizes = sorted(
        {(one.case.store, one.case.rows, one.case.n_latents) for one in results}
    )
    parts = []
    for store, rows, n_latents in sizes:
        some = [
            one
            for one in results
            if (one.case.store, one.case.rows, one.case.n_latents)
            == (store, rows, n_latents)
        ]
        parts += [_about(store, rows, n_latents, some), _fvus(some)]
        if any(one.mmcs is not None for one in some):
            parts.append(_recoveries(some))
    return "\n\n".join(parts) + "\n"


def value(result: Result, others: Sequence[Result], k: float) -> float:
    """FVU at the wanted L0: of a kind with a k as it is or with its threshold reset; of
    others moved there along the FVUs of the same library's other SAEs.
    """
    if result.case.kind in OF_K:
        return result.fvu if result.fvu_reset is None else result.fvu_reset
    return adjusted(_point(result), [_point(one) for one in others], k)


def best(results: Sequence[Result], kind: str, library: str, k: float) -> list[Result]:
    """The runs, one for each seed, of the learning rate whose FVU at the wanted L0 is
    the least.
    """
    tuned = [
        one
        for one in _of(results, kind, library)
        if one.case.lr is not None and one.case.l0 == k
    ]
    found: dict[Way, float] = {}
    for way in {_way(one) for one in tuned}:
        at = _at(_first_seed(_of_way(tuned, way)), k)
        if at is not None:
            found[way] = at
    if not found:
        return []
    same = _of_way(tuned, min(found, key=found.__getitem__))
    nearest = min(_first_seed(same), key=lambda one: abs(one.l0 - k))
    return [one for one in same if one.case.penalty == nearest.case.penalty]


def _at(some: Sequence[Result], k: float) -> float | None:
    """FVU at the wanted L0 of runs of one rate and seed."""
    if some[0].case.kind in OF_K:
        return value(some[0], some, k)
    if some[0].case.penalty is None:
        return some[0].fvu
    return at_l0(points(list(some)), k)


def _fvus(results: Sequence[Result]) -> str:
    k = _k(results)
    lines: Rows = []
    for kind in KINDS:
        for library in LIBRARIES:
            default = _default(results, kind, library)
            top = best(results, kind, library, k)
            if not default and not top:
                continue
            same = _of_way(_of(results, kind, library), _way(top[0])) if top else []
            lines.append(
                [
                    kind,
                    library.replace("_", " "),
                    _spread(default, lambda one: one.fvu),
                    _spread(default, lambda one: one.l0, 1),
                    _at_k(results, kind, library, default, k),
                    "" if library == "ours" else _ours_there(results, kind, default, k),
                    f"{top[0].case.lr:.2g}" if top else "",
                    _spread(top, partial(value, others=same, k=k)),
                    _spread(top or default, lambda one: one.dead, 0),
                ]
            )
    return _markdown(HEAD.format(k=f"{k:g}"), lines)


def _at_k(
    results: Sequence[Result],
    kind: str,
    library: str,
    default: Sequence[Result],
    k: float,
) -> str:
    """Defaults at the wanted L0, for those that can be asked for one."""
    if kind not in OF_K and library != "ours":
        return ""
    others = [one for one in _of(results, kind, library) if one.case.lr is None]
    return _spread(default, lambda one: value(one, others, k))


def _ours_there(
    results: Sequence[Result], kind: str, theirs: Sequence[Result], k: float
) -> str:
    """Ours by default at the L0 of their default: steered to it; of a kind with a k,
    both at that k.
    """
    if not theirs:
        return ""
    if kind in OF_K:
        return _spread(
            _default(results, kind, "ours"), lambda one: value(one, [one], k)
        )
    ours = [one for one in _of(results, kind, "ours") if one.case.lr is None]
    wanted = statistics.mean(one.l0 for one in theirs)
    there = [one for one in ours if abs(one.case.l0 - wanted) < 0.02 * wanted]
    return _spread(there, lambda one: value(one, ours, wanted))


def _recoveries(results: Sequence[Result]) -> str:
    k, lines = _k(results), list[list[str]]()
    names = ("mmcs", "mmcs_weighted", "f1", "f1_latents", "uniqueness")
    for kind in KINDS:
        for library in LIBRARIES:
            for what, some in (
                ("default", _default(results, kind, library)),
                ("best", best(results, kind, library, k)),
            ):
                if some:
                    figures = [_spread(some, attrgetter(name), 3) for name in names]
                    lines.append([kind, library.replace("_", " "), what, *figures])
    return _markdown(RECOVERY_HEAD, lines)


def _about(store: str, rows: int, n_latents: int, results: Sequence[Result]) -> str:
    versions = sorted({(one.case.library, one.version) for one in results})
    named = ", ".join(
        f"{library.replace('_', ' ')} {version}" for library, version in versions
    )
    seeds = len({one.case.seed for one in results})
    return (
        f"FVU on held-out rows of the `{store}` store: {rows:,} rows, {n_latents:,} latents; up to {seeds} seeds, mean "
        f"and half of the range. {named}."
    )


def _k(results: Sequence[Result]) -> float:
    """The wanted L0 of a store."""
    return next(one.case.l0 for one in results if one.case.setting != "at_l0")


def _of(results: Iterable[Result], kind: str, library: str) -> list[Result]:
    return [
        one for one in results if (one.case.kind, one.case.library) == (kind, library)
    ]


def _default(results: Sequence[Result], kind: str, library: str) -> list[Result]:
    k = _k(results)
    return [
        one
        for one in _of(results, kind, library)
        if one.case.lr is None
        and one.case.penalty is None
        and one.case.l0 == k
        and not one.case.recipe
    ]


def _way(result: Result) -> Way:
    return (result.case.lr, result.case.recipe, result.case.normalise)


def _of_way(results: Iterable[Result], way: Way) -> list[Result]:
    return [one for one in results if _way(one) == way]


def _first_seed(results: Sequence[Result]) -> list[Result]:
    first = min(one.case.seed for one in results)
    return [one for one in results if one.case.seed == first]


def _point(result: Result) -> Point:
    return Point(result.case.penalty or 0.0, result.l0, result.fvu)


def _spread(
    some: Sequence[Result], figure: Callable[[Result], float | None], digits: int = 4
) -> str:
    values = [number for one in some if (number := figure(one)) is not None]
    if not values:
        return ""
    middle = f"{statistics.mean(values):,.{digits}f}"
    half = (max(values) - min(values)) / 2
    return middle if len(values) == 1 else f"{middle} ± {half:.{digits}f}"


def _markdown(head: str, lines: Rows) -> str:
    columns = head.count("|") - 1
    return "\n".join(
        [
            head,
            "|---" * columns + "|",
            *("| " + " | ".join(line) + " |" for line in lines),
        ]
    )
