"""Patterns over names of sites: `*` stands for anything between two dots, `{0..5}` and
`{1,3}` for alternatives.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Sequence

from actstore.errors import SiteError

_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"([0-9]{1,9})\.\.([0-9]{1,9})")


def match_sites(
    patterns: Iterable[str], names: Sequence[str], others: Sequence[str] = ()
) -> list[str]:
    """The names that the patterns mean: in the order of the patterns, and by layer
    within one; none twice.

    A pattern that none of `names` matches is looked for in `others`.

    Raises:
        SiteError: a pattern that no name matches; the message has the nearest names
        that exist.
    """
    chosen: dict[str, None] = {}
    for pattern in patterns:
        for plain in expand(pattern):
            found = _matches(plain, names) or _matches(plain, others)
            if not found:
                raise SiteError(_unknown(plain, [*names, *others]))
            chosen.update(dict.fromkeys(found))
    return list(chosen)


def by_layer(name: str) -> list[tuple[int, int, str]]:
    """A sort key that counts: `blocks.2` comes before `blocks.10`."""
    return [
        (0, int(part), "") if part.isdigit() else (1, 0, part)
        for part in name.split(".")
    ]


def _matches(pattern: str, names: Sequence[str]) -> list[str]:
    if "*" not in pattern:
        return [pattern] if pattern in names else []
    expression = re.compile(
        "[^.]*".join(re.escape(part) for part in pattern.split("*"))
    )
    return sorted((name for name in names if expression.fullmatch(name)), key=by_layer)


def expand(pattern: str) -> Iterator[str]:
    """`{0..2}` and `{a,b}` written out, from left to right; one at a time, since a
    range may be of any length.
    """
    found = _BRACES.search(pattern)
    if found is None:
        yield pattern
        return
    head, tail = pattern[: found.start()], pattern[found.end() :]
    options = _options(found.group(1))
    if not options:
        raise SiteError(
            f"site pattern {pattern!r}: {found.group()} is empty; write {{0..5}} or"
            " {1,3}"
        )
    for option in options:
        yield from expand(f"{head}{option}{tail}")


def _options(body: str) -> Sequence[str] | range:
    """What stands between two braces: a range, or alternatives; nothing where one of
    these is empty.
    """
    if span := _RANGE.fullmatch(body):
        return range(int(span[1]), int(span[2]) + 1)
    parts = [part.strip() for part in body.split(",")]
    return parts if all(parts) else []


def _unknown(pattern: str, names: Sequence[str]) -> str:
    near = (
        difflib.get_close_matches(pattern.replace("*", "0"), names, n=4, cutoff=0.5)
        or list(names)[:4]
    )
    what = "no site matches" if "*" in pattern else "there is no site"
    return (
        f"{what} {pattern!r}; the nearest names are {', '.join(near)} (`*` and {{0..5}}"
        " are patterns)"
    )
