"""Every error a user can cause. Each says what was wanted, what came, where, and what
to do.

ActstoreError ├── SpecError            a value or key of a spec that cannot be used │
├── NoRowsError      a filter that leaves no row │   └── SiteError        a site that
does not exist, or has no vector per token ├── ModelError           the model cannot be
loaded or hooked ├── CorpusError          the corpus cannot be read ├── SourceError
activations that cannot be imported ├── NumericsError        values that the storage
dtype cannot hold, a site without a finite row └── StoreError           something about
a store
    ├── NotAStoreError       there is no store at the URL ├── FormatVersionError   the
    store is of a newer format ├── UnfinishedError      a harvest that has not ended │
    └── OthersUnfinishedError  this worker's share of it has ├── ExistsError
    the output is already there ├── ObjectError          an object that is missing │
    └── CorruptError     an object whose bytes are not those recorded └── StorageError
    the medium refuses: no permission, no network
        └── FullError            no space is left, or a quota is used up
"""

from __future__ import annotations


class ActstoreError(Exception):
    """The base: its message is for the user, and a command line prints it without a
    traceback.
    """


class SpecError(ActstoreError):
    """A value or key of a spec that cannot be used."""


class NoRowsError(SpecError):
    """A filter that leaves no row."""


class SiteError(SpecError):
    """A site that does not exist, or that has no single vector per token."""


class ModelError(ActstoreError):
    """The model cannot be loaded or hooked."""


class CorpusError(ActstoreError):
    """The corpus cannot be read."""


class SourceError(ActstoreError):
    """A file or array of activations (or of their tokens) that cannot be imported."""


class NumericsError(ActstoreError):
    """Values that the storage dtype cannot hold, or a site of which no row is finite."""


class StoreError(ActstoreError):
    """Something about a store."""


class NotAStoreError(StoreError):
    """There is no store at the URL."""


class FormatVersionError(StoreError):
    """The store is of a format this version does not know."""


class UnfinishedError(StoreError):
    """The harvest has not ended."""


class OthersUnfinishedError(UnfinishedError):
    """This worker's share of a harvest is done; other workers have units left."""


class ExistsError(StoreError):
    """The output is already there."""


class ObjectError(StoreError):
    """An object of the store is missing."""


class CorruptError(ObjectError):
    """An object whose bytes are not those recorded."""


class StorageError(StoreError):
    """The medium refuses: no permission, no network."""


class FullError(StorageError):
    """No space is left, or a quota is used up; its message ends so that what to do then
    can be added.
    """


def first_line(error: Exception) -> str:
    """An error of a library in one line."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


class HarvestWarning(UserWarning):
    """Something about a harvest that is no error: a corpus that ends early, documents
    or files left out.
    """
