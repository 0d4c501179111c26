"""From what a user names (files, folders, arrays) to aligned sites: which array is
which site, and which the tokens.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from blake3 import blake3

from actstore.errors import SourceError, SpecError
from actstore.format.site_patterns import by_layer
from actstore.importing.array_checks import check_activations, check_site, check_tokens
from actstore.importing.array_files import (
    find_parts,
    fingerprint,
    open_part,
    short_names,
)
from actstore.importing.arrays import Array, Joined, Part, dtype_name
from schemas.source import Imported, ImportedArray, ImportedFile

IDS = "token_ids"  # the column of SAELens' cached activations
_BLOCK = 8 << 20
Paths = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]


class Table(NamedTuple):
    """Aligned arrays: by site, and perhaps the token ids of the same rows."""

    sites: dict[str, Joined]
    tokens: Joined | None
    files: tuple[ImportedFile, ...]
    left_out: tuple[str, ...] = ()  # arrays beside those taken, that nobody asked for

    def imported(self, *, contexts: bool) -> Imported:
        """What the store says of it."""
        arrays = tuple(
            ImportedArray(
                site=site,
                format=one.parts[0].format,
                key=one.key,
                dtype=one.dtype,
                files=tuple(part.name for part in one.parts),
            )
            for site, one in self.sites.items()
        )
        tokens = None
        if self.tokens is not None:
            names = ", ".join(part.name for part in self.tokens.parts)
            tokens = names if self.tokens.key is None else f"{names}: {self.tokens.key}"
        return Imported(
            arrays=arrays, files=self.files, tokens=tokens, contexts=contexts
        )

    def close(self) -> None:
        """Close every file."""
        for one in (
            *self.sites.values(),
            *([] if self.tokens is None else [self.tokens]),
        ):
            one.close()


class Choice(NamedTuple):
    """How arrays are chosen: the site's name, keys in the files, and where the tokens
    are.
    """

    site: str | None = None
    keys: tuple[str, ...] = ()
    token_key: str | None = None
    format: str = "auto"


def table_of_files(
    plain: Paths, named: Mapping[str, Paths], choice: Choice, tokens: Any
) -> Table:
    """Files by site (`named`), or files whose arrays' names are sites (`plain`). Raises
    SourceError, SpecError.
    """
    found = {
        site: find_parts(_several(paths), choice.format)
        for site, paths in named.items()
    }
    loose = find_parts(_several(plain), choice.format)
    in_memory = hasattr(tokens, "dtype")
    of_tokens = [] if tokens is None or in_memory else find_parts(_several(tokens))
    every = {
        path: kind
        for part in (*found.values(), loose, of_tokens)
        for path, kind in part
    }
    names = short_names(list(every))
    parts = {path: open_part(names[path], path, kind) for path, kind in every.items()}
    sites: dict[str, Joined] = {}
    if loose:
        sites |= _by_key([parts[path] for path, _ in loose], choice)
    elif choice.site is not None:
        raise SpecError(
            "--site names the array of files that have no NAME= of their own; give it,"
            " or NAME=PATH, once"
        )
    for site, those in found.items():
        if site in sites:
            raise SourceError(
                f"site {site!r} is given twice: as NAME=PATH, and as an array in"
                " another file"
            )
        mine = [parts[path] for path, _ in those]
        sites[site] = Joined.of(mine, _one_key(mine[0], choice))
    first = [parts[path] for path, _ in loose or next(iter(found.values()))]
    if in_memory and choice.token_key is not None:
        raise SpecError("token_key: the tokens are an array already; leave it out")
    given = (
        [_memory_part("tokens", tokens)]
        if in_memory
        else [parts[path] for path, _ in of_tokens]
    )
    taken = {one.key for one in sites.values()}
    if unused := [key for key in choice.keys if key not in taken]:
        raise SpecError(f"--key {unused[0]}: no site is of that array; leave it out")
    table = _checked(Table(sites, _tokens(given, first, choice), ()))
    table = table._replace(left_out=() if choice.keys else _left_out(first[0], table))
    files = [fingerprint(names[path], path) for path in every]
    if in_memory and table.tokens is not None:
        files.append(_memory_digest(table.tokens))
    return table._replace(files=tuple(files))


def split_named(paths: Paths) -> tuple[list[str], dict[str, list[str]]]:
    """Paths, and those given as NAME=PATH by name (where there is no file of all of
    that name).
    """
    plain: list[str] = []
    named: dict[str, list[str]] = {}
    for text in (os.fspath(path) for path in _several(paths)):
        name, equals, path = text.partition("=")
        if equals and not Path(text).exists():
            named.setdefault(check_site(name), []).append(path)
        else:
            plain.append(text)
    return plain, named


def table_of_arrays(arrays: Mapping[str, Any], tokens: Any = None) -> Table:
    """Arrays or tensors in memory, by site."""
    ids = None if tokens is None else Joined.of([_memory_part("tokens", tokens)], None)
    sites = {
        name: Joined.of([_memory_part(name, one)], None) for name, one in arrays.items()
    }
    every = [*sites.values(), *([] if ids is None else [ids])]
    return _checked(Table(sites, ids, tuple(_memory_digest(one) for one in every)))


def _checked(table: Table) -> Table:
    for site, one in table.sites.items():
        check_site(site)
        check_activations(site, one.names, one.dtype, (one.length, *one.tail))
    if table.tokens is not None:
        check_tokens(
            table.tokens.names,
            table.tokens.dtype,
            (table.tokens.length, *table.tokens.tail),
        )
    return table


def _by_key(parts: list[Part], choice: Choice) -> dict[str, Joined]:
    """The arrays of files without a site's name: each key is a site, over all of the
    files.
    """
    with parts[0].opened() as there:
        keys = [
            one.key
            for one in there
            if one.is_activations and one.key != choice.token_key
        ]
        listed = ", ".join(map(str, there))
        alone = len(there) == 1 and there[0].key is None
    if alone:
        if choice.keys:
            raise SpecError(
                f"{parts[0].where}: it holds one array without a name; leave --key out"
            )
        return {_name_of_alone(parts, choice): Joined.of(parts, None)}
    wanted = list(choice.keys) or keys
    if not wanted:
        raise SourceError(
            f"{parts[0].where}: there are no activations in it (floats of shape [n, d]"
            f" or [n_sequences, context, d]); it holds {listed}"
        )
    if choice.site is not None and len(wanted) > 1:
        raise SpecError(
            f"--site {choice.site}: {parts[0].where} holds several arrays; choose one"
            f" with --key: {listed}"
        )
    if choice.site is not None:
        return {choice.site: Joined.of(parts, wanted[0])}
    sites = {str(key).replace("/", "."): key for key in wanted}
    return {site: Joined.of(parts, sites[site]) for site in sorted(sites, key=by_layer)}


def _name_of_alone(parts: list[Part], choice: Choice) -> str:
    """The site of files that hold one array without a name each."""
    if choice.site is not None:
        return choice.site
    if len(parts) == 1:
        return Path(parts[0].name).stem
    raise SpecError(
        f"{parts[0].where} and {len(parts) - 1} more hold one array each: give --site"
        " NAME if they are parts of one array, in this order, or NAME=PATH for each if"
        " they are several sites"
    )


def _one_key(part: Part, choice: Choice) -> str | None:
    """The key of the one array in a file that was given as NAME=PATH."""
    with part.opened() as there:
        if len(there) == 1 and (not choice.keys or there[0].key in choice.keys):
            return there[0].key
        usable = [
            one.key
            for one in there
            if one.is_activations and one.key != choice.token_key
        ]
        chosen = (
            [key for key in usable if key in choice.keys] if choice.keys else usable
        )
        if len(chosen) != 1:
            raise SpecError(
                f"{part.where}: which of its arrays? Name one with --key:"
                f" {', '.join(map(str, there))}"
            )
        return chosen[0]


def _tokens(given: list[Part], first: list[Part], choice: Choice) -> Joined | None:
    """The token ids: of their own files, or an array beside the activations."""
    if given:
        with given[0].opened() as there:
            keys = [one.key for one in there if choice.token_key in {None, one.key}]
            if len(keys) != 1:
                raise SpecError(
                    f"{given[0].where}: which of its arrays are the tokens? Name it"
                    f" with --token-key: {', '.join(map(str, there))}"
                )
        return Joined.of(given, keys[0])
    if choice.token_key is not None:
        return Joined.of(first, choice.token_key)
    with first[0].opened() as there:
        beside = [one for one in there if one.key == IDS]
    return Joined.of(first, IDS) if beside and first[0].format == "saelens" else None


def _left_out(part: Part, table: Table) -> tuple[str, ...]:
    """Arrays of the first file that are neither a site nor the tokens."""
    taken = {one.key for one in table.sites.values()} | (
        {table.tokens.key} if table.tokens is not None else set()
    )
    with part.opened() as there:
        return tuple(str(one) for one in there if one.key not in taken)


def _several(paths: Paths) -> Iterable[str | os.PathLike[str]]:
    return [paths] if isinstance(paths, (str, os.PathLike)) else paths


def _memory_part(name: str, values: Any) -> Part:
    """An array or tensor in memory as a part."""
    if not hasattr(values, "shape") or not hasattr(values, "dtype"):
        raise SourceError(
            f"{name}: wanted an array or a tensor, got {type(values).__name__}"
        )
    array = Array(
        None,
        tuple(values.shape),
        dtype_name(values.dtype),
        lambda start, stop: values[start:stop],
    )
    return Part(name, name, "memory", lambda _: [array])


def _memory_digest(one: Joined) -> ImportedFile:
    import torch

    state, total = blake3(), 0
    rows = max(1, _BLOCK // (8 * max(1, *one.tail))) if one.tail else _BLOCK
    for start in range(0, one.length, rows):
        data = (
            one.read(start, min(start + rows, one.length))
            .contiguous()
            .reshape(-1)
            .view(torch.uint8)
            .numpy()
        )
        state.update(data.data)
        total += data.nbytes
    return ImportedFile(name=one.parts[0].name, bytes=total, digest=state.hexdigest())
