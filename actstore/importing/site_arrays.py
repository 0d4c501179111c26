"""Finds the array of each site in what a user names: files, folders, arrays.

It settles which array is which site, and which one holds the token ids.
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
from actstore.importing.source_arrays import (
    JoinedArray,
    SourceArray,
    SourceFile,
    dtype_name,
    slicing,
)
from actstore.importing.source_files import (
    FoundFile,
    find_files,
    fingerprint,
    short_names,
    source_file,
)
from schemas.source import Imported, ImportedArray, ImportedFile

SAELENS_TOKENS = "token_ids"  # the column of SAELens' cached activations
# Bytes of an array in memory that are digested at a time.
_DIGEST_BYTES = 8 << 20
Paths = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]


class SiteArrays(NamedTuple):
    """The arrays of an import, by site, and perhaps the token ids of the same rows.

    Attributes:
        sites: One array for each site.
        tokens: The token ids; None where they are not known.
        files: What identifies the files.
        left_out: Arrays that lie beside those taken, and that nobody asked for.
    """

    sites: dict[str, JoinedArray]
    tokens: JoinedArray | None
    files: tuple[ImportedFile, ...]
    left_out: tuple[str, ...] = ()

    def imported(self, *, has_contexts: bool) -> Imported:
        """Return what the store says of where its activations come from."""
        arrays = tuple(
            ImportedArray(
                site=site,
                format=array.files[0].format,
                key=array.key,
                dtype=array.dtype,
                files=tuple(file.name for file in array.files),
            )
            for site, array in self.sites.items()
        )
        tokens = None
        if self.tokens is not None:
            tokens = ", ".join(file.name for file in self.tokens.files)
            if self.tokens.key is not None:
                tokens = f"{tokens}: {self.tokens.key}"
        return Imported(
            arrays=arrays, files=self.files, tokens=tokens, contexts=has_contexts
        )

    def close(self) -> None:
        """Close every file."""
        for array in self.sites.values():
            array.close()
        if self.tokens is not None:
            self.tokens.close()


class Selection(NamedTuple):
    """The user's choice of arrays.

    Attributes:
        site: The name of the one site, where its array has none.
        keys: Names of arrays in the files; empty: all that can be sites.
        token_key: The name of the token ids' array.
        format: The files' format, or `auto`.
    """

    site: str | None = None
    keys: tuple[str, ...] = ()
    token_key: str | None = None
    format: str = "auto"


def arrays_of_files(
    unnamed_paths: Paths,
    named_paths: Mapping[str, Paths],
    selection: Selection,
    tokens: Any,
) -> SiteArrays:
    """Find the arrays of an import in files.

    Args:
        unnamed_paths: Files in which an array's name is that of its site.
        named_paths: Files by the site that they hold.
        selection: Which arrays to take.
        tokens: Token ids: an array, a tensor, paths, or None.

    Raises:
        SourceError: A file cannot be imported.
        SpecError: An option does not suit the files.
    """
    tokens_are_array = hasattr(tokens, "dtype")
    named = {
        site: find_files(_several(paths), selection.format)
        for site, paths in named_paths.items()
    }
    unnamed = find_files(_several(unnamed_paths), selection.format)
    token_files: list[FoundFile] = []
    if tokens is not None and not tokens_are_array:
        token_files = find_files(_several(tokens))

    # A path may be named more than once: for a site, and for the tokens.
    every_file: dict[Path, FoundFile] = {}
    for found_files in (*named.values(), unnamed, token_files):
        every_file.update({found.path: found for found in found_files})
    names = short_names(list(every_file))

    def files_of(found_files: list[FoundFile]) -> list[SourceFile]:
        paths = [found.path for found in found_files]
        return [source_file(names[path], every_file[path]) for path in paths]

    unnamed_files = files_of(unnamed)
    named_files = {site: files_of(found) for site, found in named.items()}
    sites = _sites_of_files(unnamed_files, named_files, selection)
    first_files = unnamed_files or next(iter(named_files.values()))
    if tokens_are_array:
        if selection.token_key is not None:
            raise SpecError("token_key: the tokens are an array already; leave it out")
        given_tokens = [_file_in_memory("tokens", tokens)]
    else:
        given_tokens = files_of(token_files)
    _check_keys_are_used(sites, selection)
    token_array = _token_array(given_tokens, first_files, selection)
    arrays = _checked(SiteArrays(sites, token_array, ()))

    # A user who names keys knows that others are left out: no warning.
    left_out: tuple[str, ...] = ()
    if not selection.keys:
        left_out = _left_out(first_files[0], arrays)
    # Last, since this reads every byte: what is wrong with options is said before.
    fingerprints = [fingerprint(names[path], path) for path in every_file]
    if tokens_are_array and token_array is not None:
        fingerprints.append(_fingerprint_in_memory(token_array))
    return arrays._replace(left_out=left_out, files=tuple(fingerprints))


def split_named(paths: Paths) -> tuple[list[str], dict[str, list[str]]]:
    """Tell paths from those that are given as NAME=PATH.

    Returns:
        The former, and the latter by name. A file whose own name has a `=` is a path.
    """
    unnamed: list[str] = []
    named: dict[str, list[str]] = {}
    for given in _several(paths):
        text = os.fspath(given)
        name, equals, path = text.partition("=")
        if equals and not Path(text).exists():
            named.setdefault(check_site(name), []).append(path)
        else:
            unnamed.append(text)
    return unnamed, named


def arrays_in_memory(arrays: Mapping[str, Any], tokens: Any = None) -> SiteArrays:
    """Return arrays or tensors in memory, by site, as the arrays of an import.

    Args:
        arrays: [n, d] or [n_sequences, context, d] by site.
        tokens: Integers, [n] or [n_sequences, context].

    Raises:
        SourceError: An array cannot be imported.
        SpecError: The tokens are paths.
    """
    token_array = None
    if tokens is not None:
        if not hasattr(tokens, "dtype"):
            raise SpecError(
                f"tokens: wanted an array beside arrays in memory, got {tokens!r}; a"
                " path goes with files of activations"
            )
        token_array = JoinedArray.of([_file_in_memory("tokens", tokens)], None)
    sites = {
        name: JoinedArray.of([_file_in_memory(name, array)], None)
        for name, array in arrays.items()
    }
    every_array = list(sites.values())
    if token_array is not None:
        every_array.append(token_array)
    fingerprints = tuple(_fingerprint_in_memory(array) for array in every_array)
    return _checked(SiteArrays(sites, token_array, fingerprints))


def _checked(arrays: SiteArrays) -> SiteArrays:
    """Return the same; what cannot be a site or token ids is refused."""
    for site, array in arrays.sites.items():
        check_site(site)
        check_activations(site, array.names, array.dtype, array.shape)
    tokens = arrays.tokens
    if tokens is not None:
        check_tokens(tokens.names, tokens.dtype, tokens.shape)
    return arrays


def _sites_of_files(
    unnamed: list[SourceFile],
    named: Mapping[str, list[SourceFile]],
    selection: Selection,
) -> dict[str, JoinedArray]:
    """Return the arrays of files by site; arguments as in `arrays_of_files`."""
    sites: dict[str, JoinedArray] = {}
    if unnamed:
        sites |= _sites_by_key(unnamed, selection)
    elif selection.site is not None:
        raise SpecError(
            "--site names the array of files that have no NAME= of their own; give it,"
            " or NAME=PATH, once"
        )
    for site, files in named.items():
        if site in sites:
            raise SourceError(
                f"site {site!r} is given twice: as NAME=PATH, and as an array in"
                " another file"
            )
        sites[site] = JoinedArray.of(files, _only_key(files[0], selection))
    return sites


def _check_keys_are_used(
    sites: Mapping[str, JoinedArray], selection: Selection
) -> None:
    taken = {array.key for array in sites.values()}
    unused = [key for key in selection.keys if key not in taken]
    if unused:
        raise SpecError(f"--key {unused[0]}: no site is of that array; leave it out")


def _sites_by_key(
    files: list[SourceFile], selection: Selection
) -> dict[str, JoinedArray]:
    """Return the arrays of files that were given without a site's name.

    Each of their keys is a site, and goes over all of the files.
    """
    first = files[0]
    with first.opened() as arrays:
        usable = _usable_keys(arrays, selection)
        listed = ", ".join(map(str, arrays))
        has_one_without_name = len(arrays) == 1 and arrays[0].key is None
    if has_one_without_name:
        if selection.keys:
            raise SpecError(
                f"{first.where}: it holds one array without a name; leave --key out"
            )
        return {_site_without_key(files, selection): JoinedArray.of(files, None)}
    keys = list(selection.keys) or usable
    if not keys:
        raise SourceError(
            f"{first.where}: there are no activations in it (floats of shape [n, d]"
            f" or [n_sequences, context, d]); it holds {listed}"
        )
    if selection.site is not None:
        if len(keys) > 1:
            raise SpecError(
                f"--site {selection.site}: {first.where} holds several arrays; choose"
                f" one with --key: {listed}"
            )
        return {selection.site: JoinedArray.of(files, keys[0])}
    # HDF5 and Zarr have keys such as `blocks/0/hook`; a site's name is a part of a key
    # of the store, where `/` would make folders.
    key_of_site = {str(key).replace("/", "."): key for key in keys}
    return {
        site: JoinedArray.of(files, key_of_site[site])
        for site in sorted(key_of_site, key=by_layer)
    }


def _site_without_key(files: list[SourceFile], selection: Selection) -> str:
    """Return the site of files that hold one array without a name each."""
    if selection.site is not None:
        return selection.site
    if len(files) == 1:
        return Path(files[0].name).stem
    raise SpecError(
        f"{files[0].where} and {len(files) - 1} more hold one array each: give --site"
        " NAME if they are parts of one array, in this order, or NAME=PATH for each if"
        " they are several sites"
    )


def _only_key(file: SourceFile, selection: Selection) -> str | None:
    """Return the key of the one array in a file that was given as NAME=PATH."""
    with file.opened() as arrays:
        listed = ", ".join(map(str, arrays))
        every_key = [array.key for array in arrays]
        usable = _usable_keys(arrays, selection)
    # A file's only array is taken whatever it holds: what is wrong with it is said
    # when it is checked.
    candidates = every_key if len(every_key) == 1 else usable
    if selection.keys:
        candidates = [key for key in candidates if key in selection.keys]
    if len(candidates) != 1:
        raise SpecError(
            f"{file.where}: which of its arrays? Name one with --key: {listed}"
        )
    return candidates[0]


def _usable_keys(
    arrays: Iterable[SourceArray], selection: Selection
) -> list[str | None]:
    """Return the keys of the arrays that can be sites."""
    return [
        array.key
        for array in arrays
        if array.is_activations and array.key != selection.token_key
    ]


def _token_array(
    given: list[SourceFile], beside: list[SourceFile], selection: Selection
) -> JoinedArray | None:
    """Return the token ids; None where they are not known.

    Args:
        given: Their own files, if they have some.
        beside: The files of the activations, which may hold them too.
        selection: Which array they are.
    """
    token_key = selection.token_key
    if given:
        with given[0].opened() as arrays:
            listed = ", ".join(map(str, arrays))
            keys = [array.key for array in arrays if token_key in {None, array.key}]
        if len(keys) != 1:
            raise SpecError(
                f"{given[0].where}: which of its arrays are the tokens? Name it"
                f" with --token-key: {listed}"
            )
        return JoinedArray.of(given, keys[0])
    if token_key is not None:
        return JoinedArray.of(beside, token_key)
    # Only in SAELens' data sets is a column of this name known to be token ids.
    with beside[0].opened() as arrays:
        has_column = any(array.key == SAELENS_TOKENS for array in arrays)
    if has_column and beside[0].format == "saelens":
        return JoinedArray.of(beside, SAELENS_TOKENS)
    return None


def _left_out(file: SourceFile, arrays: SiteArrays) -> tuple[str, ...]:
    """Return the arrays of the first file that are neither a site nor the tokens."""
    taken_keys = {array.key for array in arrays.sites.values()}
    if arrays.tokens is not None:
        taken_keys.add(arrays.tokens.key)
    with file.opened() as there:
        return tuple(str(array) for array in there if array.key not in taken_keys)


def _several(paths: Paths) -> Iterable[str | os.PathLike[str]]:
    return [paths] if isinstance(paths, (str, os.PathLike)) else paths


def _file_in_memory(name: str, values: Any) -> SourceFile:
    """Return an array or tensor in memory as if it were a file that holds it."""
    if not hasattr(values, "shape") or not hasattr(values, "dtype"):
        raise SourceError(
            f"{name}: wanted an array or a tensor, got {type(values).__name__}"
        )
    array = SourceArray(
        None, tuple(values.shape), dtype_name(values.dtype), slicing(values)
    )
    return SourceFile(name, name, "memory", lambda _: [array])


def _fingerprint_in_memory(array: JoinedArray) -> ImportedFile:
    """Return the size and digest of an array in memory, read some rows at a time."""
    import torch

    digest = blake3()
    total = 0
    # In pieces, for a copy of the whole might not fit into memory.
    block_rows = _DIGEST_BYTES
    if array.tail:
        # 8 bytes: no value is wider
        row_bytes = 8 * max(1, *array.tail)
        block_rows = max(1, _DIGEST_BYTES // row_bytes)
    for start in range(0, array.length, block_rows):
        rows = array.read(start, min(start + block_rows, array.length))
        data = rows.contiguous().reshape(-1).view(torch.uint8).numpy()
        digest.update(data.data)
        total += data.nbytes
    return ImportedFile(
        name=array.files[0].name, bytes=total, digest=digest.hexdigest()
    )
