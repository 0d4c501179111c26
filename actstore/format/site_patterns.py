"""Patterns over names of sites.

`*` stands for anything between two dots, `{0..5}` and `{1,3}` for alternatives.

`blocks.{0..1}.hook_*` is `blocks.0.hook_*` and `blocks.1.hook_*`; the first of these
means `blocks.0.hook_mlp_out`, but not `blocks.0.attn.hook_z`, which has one more dot.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Sequence

from actstore.errors import SiteError

_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"([0-9]{1,9})\.\.([0-9]{1,9})")


def match_sites(
    patterns: Iterable[str],
    names: Sequence[str],
    others: Sequence[str] = (),
) -> list[str]:
    """Return the names that patterns mean, none twice.

    They come in the order of the patterns, and by layer within one.

    Args:
        patterns: Names, or patterns over them.
        names: What there is.
        others: Where a pattern is looked for that none of `names` matches.

    Raises:
        SiteError: No name matches a pattern; the message has the nearest names.
    """
    chosen: dict[str, None] = {}  # keeps the order, unlike a set
    for pattern in patterns:
        for plain in expand(pattern):
            matching = _matches(plain, names) or _matches(plain, others)
            if not matching:
                raise SiteError(_unknown(plain, [*names, *others]))
            chosen.update(dict.fromkeys(matching))
    return list(chosen)


def by_layer(name: str) -> list[tuple[int, int, str]]:
    """Return a sort key that counts: `blocks.2` comes before `blocks.10`."""
    return [
        (0, int(part), "") if part.isdigit() else (1, 0, part)
        for part in name.split(".")
    ]


def _matches(pattern: str, names: Sequence[str]) -> list[str]:
    """Return the names that a pattern without braces matches, by layer."""
    if "*" not in pattern:
        return [pattern] if pattern in names else []
    # Between two dots only: `blocks.*.attn` shall not match `blocks.0.mlp.attn`.
    literal_parts = [re.escape(part) for part in pattern.split("*")]
    expression = re.compile("[^.]*".join(literal_parts))
    matching = [name for name in names if expression.fullmatch(name)]
    return sorted(matching, key=by_layer)


def expand(pattern: str) -> Iterator[str]:
    """Yield a pattern with `{0..2}` and `{a,b}` written out, from left to right.

    They come one at a time, since a range may be of any length.

    Raises:
        SiteError: Braces with nothing in them.
    """
    braces = _BRACES.search(pattern)
    if braces is None:
        yield pattern
        return
    head = pattern[: braces.start()]
    tail = pattern[braces.end() :]
    options = _options(braces.group(1))
    if not options:
        raise SiteError(
            f"site pattern {pattern!r}: {braces.group()} is empty; write {{0..5}} or"
            " {1,3}"
        )
    for option in options:
        yield from expand(f"{head}{option}{tail}")


def _options(body: str) -> Sequence[str] | range:
    """Return what stands between two braces: a range, or alternatives.

    Nothing, where one of these is empty.
    """
    span = _RANGE.fullmatch(body)
    if span:
        return range(int(span[1]), int(span[2]) + 1)
    alternatives = [part.strip() for part in body.split(",")]
    return alternatives if all(alternatives) else []


def _unknown(pattern: str, names: Sequence[str]) -> str:
    """Return what is said of a pattern that no name matches."""
    like = pattern.replace("*", "0")
    nearest = difflib.get_close_matches(like, names, n=4, cutoff=0.5)
    nearest = nearest or list(names)[:4]
    what = "no site matches" if "*" in pattern else "there is no site"
    return (
        f"{what} {pattern!r}; the nearest names are {', '.join(nearest)} (`*` and"
        " {0..5} are patterns)"
    )
