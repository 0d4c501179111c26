"""Which split a file is of, by the names of folders and files, as the `datasets`
library has it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from actstore.errors import CorpusError
from actstore.text.corpus_files import Files

TRAIN, ALL = "train", "all"
KEYWORDS = {
    TRAIN: ("train", "training"),
    "validation": ("validation", "valid", "dev", "val"),
    "test": ("test", "testing", "eval", "evaluation"),
}
_SHARD = re.compile(r"data/(\w+(?:\.\w+)*)-[0-9]{5}-of-[0-9]{5}[^/]*\.[^/]*")
_APART = "[-._ 0-9]"  # what stands around a word
_BEGINNING = {
    split: rf"(?:.*{_APART})?(?:{'|'.join(words)})" for split, words in KEYWORDS.items()
}
_FOLDER = {
    split: re.compile(rf"{text}(?:{_APART}.*)?") for split, text in _BEGINNING.items()
}
_FILE = {split: re.compile(rf"{text}{_APART}.*") for split, text in _BEGINNING.items()}
_SHOWN = 3


def splits_of(names: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Relative paths by split, in their order; none where no name tells a split.

    The first way to tell it that holds for any of the files counts:
    `data/NAME-00000-of-00001.*`, then the words of KEYWORDS in folders' names, then
    those in files' names. A name with the words of two splits is in both.
    """
    names = tuple(names)
    shards = {name: shard[1] for name in names if (shard := _SHARD.fullmatch(name))}
    if shards:
        return {
            split: tuple(n for n in shards if shards[n] == split)
            for split in sorted({*shards.values()})
        }
    for part, of_split in ((slice(-1), _FOLDER), (slice(-1, None), _FILE)):
        found = {split: _named(names, part, words) for split, words in of_split.items()}
        if any(found.values()):
            return {split: those for split, those in found.items() if those}
    return {}


def choose(files: Files, split: str | None, *, named: bool) -> tuple[Files, str | None]:
    """The files of a split, and a sentence on what is left out. None: train, or
    whatever was named file by file.

    named: whether only a name makes a file one of the training split (else, where names
    tell of other splits only, and in any case for documents that are a file each, those
    without a split's name are). Raises CorpusError.
    """
    if split == ALL:
        return files, None
    path_of = {files.relative(path): path for path in files.paths}
    found = splits_of(path_of)
    if split is None and files.given != "folder":
        return files, _merged(found) if files.given == "pattern" else None
    wanted = split or TRAIN
    if not found and wanted == TRAIN:
        return files, None
    known = {name for those in found.values() for name in those}
    loose = tuple(name for name in path_of if name not in known)
    taken = found.get(wanted, ())
    if wanted == TRAIN and loose and not (taken and named):
        taken = tuple(name for name in path_of if name in {*taken, *loose})
    if not taken:
        raise CorpusError(_none_of(files, wanted, found))
    kept = files.only(tuple(path_of[name] for name in taken))
    return kept, _left_out(
        wanted,
        len(taken),
        {name: n for name, n in found.items() if name != wanted},
        loose,
        taken,
    )


def some(names: Iterable[str]) -> str:
    """The first of several names, for a message."""
    names = list(names)
    return ", ".join(names[:_SHOWN]) + (
        f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else ""
    )


def _named(
    names: tuple[str, ...], part: slice, words: re.Pattern[str]
) -> tuple[str, ...]:
    """Paths of which a folder, or the file's name, fits."""
    return tuple(
        name
        for name in names
        if any(words.fullmatch(one) for one in name.split("/")[part])
    )


def _merged(found: dict[str, tuple[str, ...]]) -> str | None:
    if len(found) < 2:
        return None
    return (
        f"files of several splits ({', '.join(found)}) are read as one; --split NAME"
        " reads one of them"
    )


def _none_of(files: Files, wanted: str, found: dict[str, tuple[str, ...]]) -> str:
    if files.given == "file":
        have = (
            f"its name says {' and '.join(found)}"
            if found
            else "its name tells no split"
        )
        return (
            f"{files.paths[0]}: the file is not of split {wanted!r}, {have}; leave"
            " --split out to read it all the same"
        )
    if not found:
        return (
            f"{files.root}: there is no split {wanted!r}: no folder or file in it is"
            " named after a split (train, validation, test); leave --split out to read"
            " all files"
        )
    return (
        f"{files.root}: there is no split {wanted!r}; it has {', '.join(found)} (all:"
        " every file, whatever its name)"
    )


def _left_out(
    wanted: str,
    n: int,
    others: dict[str, tuple[str, ...]],
    loose: tuple[str, ...],
    taken: tuple[str, ...],
) -> str | None:
    left = {
        f"split {name}": [one for one in those if one not in taken]
        for name, those in others.items()
    }
    left["no split's name"] = [name for name in loose if name not in set(taken)]
    told = [
        f"{len(those):,} of {name} ({some(those)})"
        for name, those in left.items()
        if those
    ]
    if not told:
        return None
    return (
        f"split {wanted} is read, {n:,} file{'s' * (n != 1)}; left out:"
        f" {'; '.join(told)}; --split all reads every file"
    )
