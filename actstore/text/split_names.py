"""Tell by names which split (train, validation, test) a file is of.

What counts are the names of the folders that it lies in, and its own. The rules are
those of the `datasets` library, so that a folder is read as there.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from actstore.console.short_lists import first_few
from actstore.errors import CorpusError
from actstore.text.corpus_files import CorpusFiles

TRAIN = "train"
ALL = "all"
KEYWORDS = {
    TRAIN: ("train", "training"),
    "validation": ("validation", "valid", "dev", "val"),
    "test": ("test", "testing", "eval", "evaluation"),
}
# As data sets on the hub name their files: `data/train-00000-of-00012.parquet`.
_NUMBERED_FILE = re.compile(r"data/(\w+(?:\.\w+)*)-[0-9]{5}-of-[0-9]{5}[^/]*\.[^/]*")
# A keyword counts as a word of its own only: `my-train.txt`, not `trainer.txt`.
_SEPARATOR = "[-._ 0-9]"
_UP_TO_KEYWORD = {
    split: rf"(?:.*{_SEPARATOR})?(?:{'|'.join(words)})"
    for split, words in KEYWORDS.items()
}
_FOLDER_NAMES = {
    split: re.compile(rf"{text}(?:{_SEPARATOR}.*)?")
    for split, text in _UP_TO_KEYWORD.items()
}
_FILE_NAMES = {
    split: re.compile(rf"{text}{_SEPARATOR}.*")
    for split, text in _UP_TO_KEYWORD.items()
}
_MOST_SHOWN = 3  # names in a message

# Relative paths by the split that they are of.
PathsBySplit = dict[str, tuple[str, ...]]


def splits_of(names: Iterable[str]) -> PathsBySplit:
    """Return relative paths by split, in their order; empty where no name tells one.

    There are three ways to tell, and the first that holds for any of the files counts:
    `data/NAME-00000-of-00001.*`, then the words of KEYWORDS in folders' names, then
    those in files' names. A name with the words of two splits is in both.
    """
    paths = tuple(names)
    numbered: dict[str, list[str]] = {}
    for path in paths:
        match = _NUMBERED_FILE.fullmatch(path)
        if match:
            numbered.setdefault(match[1], []).append(path)
    if numbered:
        return {split: tuple(numbered[split]) for split in sorted(numbered)}
    folders = slice(-1)
    by_folder = _paths_by_word(paths, folders, _FOLDER_NAMES)
    if by_folder:
        return by_folder
    file_name = slice(-1, None)
    return _paths_by_word(paths, file_name, _FILE_NAMES)


def files_of_split(
    files: CorpusFiles, split: str | None, *, named_only: bool
) -> tuple[CorpusFiles, str | None]:
    """Return the files of a split, and a sentence on what is left out.

    Args:
        files: The files of the corpus.
        split: A split's name; "all" for every file; None for train, or, where the
            user named a file or a pattern, for just those files.
        named_only: Whether a file without a split's name is none of the training
            split. It is one in any case where no name tells of a training split.

    Raises:
        CorpusError: There is no such split.
    """
    if split == ALL:
        return files, None
    path_of = {files.relative(path): path for path in files.paths}
    found = splits_of(path_of)
    if split is None and files.given == "file":
        return files, None
    if split is None and files.given == "pattern":
        return files, _several_splits_note(found)
    wanted = split or TRAIN
    if not found and wanted == TRAIN:
        return files, None
    with_split = {name for names in found.values() for name in names}
    without_split = tuple(name for name in path_of if name not in with_split)
    taken = found.get(wanted, ())
    if wanted == TRAIN and without_split and not (taken and named_only):
        training = {*taken, *without_split}
        taken = tuple(name for name in path_of if name in training)
    if not taken:
        raise CorpusError(_no_such_split(files, wanted, found))
    kept = files.only(tuple(path_of[name] for name in taken))
    others = {split: names for split, names in found.items() if split != wanted}
    return kept, _left_out_note(wanted, taken, others, without_split)


def first_names(names: Iterable[str]) -> str:
    """Return the first of several names for a message, and how many more there are."""
    return first_few(list(names), _MOST_SHOWN)


def _paths_by_word(
    paths: tuple[str, ...], steps: slice, patterns: dict[str, re.Pattern[str]]
) -> PathsBySplit:
    """Return the paths of which one of `steps` fits a split's pattern, by split."""
    found = {}
    for split, pattern in patterns.items():
        fitting = tuple(
            path
            for path in paths
            if any(pattern.fullmatch(step) for step in path.split("/")[steps])
        )
        if fitting:
            found[split] = fitting
    return found


def _several_splits_note(found: PathsBySplit) -> str | None:
    if len(found) < 2:
        return None
    return (
        f"files of several splits ({', '.join(found)}) are read as one; --split NAME"
        " reads one of them"
    )


def _no_such_split(files: CorpusFiles, wanted: str, found: PathsBySplit) -> str:
    if files.given == "file":
        if found:
            told = f"its name says {' and '.join(found)}"
        else:
            told = "its name tells no split"
        return (
            f"{files.paths[0]}: the file is not of split {wanted!r}, {told}; leave"
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


def _left_out_note(
    wanted: str,
    taken: tuple[str, ...],
    others: PathsBySplit,
    without_split: tuple[str, ...],
) -> str | None:
    # A file may be of two splits by its name: it is left out only if it is not taken.
    kept = set(taken)
    groups = {f"split {split}": names for split, names in others.items()}
    groups["no split's name"] = without_split
    texts = []
    for group, names in groups.items():
        left_out = [name for name in names if name not in kept]
        if left_out:
            texts.append(f"{len(left_out):,} of {group} ({first_names(left_out)})")
    if not texts:
        return None
    plural = "" if len(taken) == 1 else "s"
    return (
        f"split {wanted} is read, {len(taken):,} file{plural}; left out:"
        f" {'; '.join(texts)}; --split all reads every file"
    )
