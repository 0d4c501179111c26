"""Every error that a user can cause.

Each says what was wanted, what came, where, and what to do.

    ActstoreError
    ├── SpecError            a value or key of a spec cannot be used
    │   ├── NoRowsError      a filter leaves no row
    │   └── SiteError        a site does not exist, or has no vector per token
    ├── ModelError           the model cannot be loaded or hooked
    ├── CorpusError          the corpus cannot be read
    ├── SourceError          activations cannot be imported
    ├── NumericsError        the storage dtype cannot hold values, or none is finite
    ├── EngineError          what places work on machines is not there, or a job failed
    │   └── ClusterLostError the cluster cannot be reached, or is lost
    └── StoreError           something is wrong with a store
        ├── NotAStoreError       there is no store at the URL
        ├── FormatVersionError   the store has a newer format
        ├── UnfinishedError      the harvest has not ended
        │   └── OthersUnfinishedError  this worker's share of it has
        ├── ExistsError          the output is already there
        ├── CatalogError         a name leads to nothing, or to something else
        ├── ObjectError          an object is missing
        │   └── CorruptError     an object's bytes are not those recorded
        └── StorageError         the medium refuses: no permission, no network
            └── FullError        no space is left, or a quota is used up
"""

from __future__ import annotations


class ActstoreError(Exception):
    """The base of all errors that a user can cause.

    Its message is for the user; a command line prints it without a traceback.
    """


class SpecError(ActstoreError):
    """A value or key of a spec cannot be used."""


class NoRowsError(SpecError):
    """A filter leaves no row."""


class SiteError(SpecError):
    """A site does not exist, or has no single vector per token."""


class ModelError(ActstoreError):
    """The model cannot be loaded or hooked."""


class CorpusError(ActstoreError):
    """The corpus cannot be read."""


class SourceError(ActstoreError):
    """A file or array of activations, or of their tokens, cannot be imported."""


class NumericsError(ActstoreError):
    """The storage dtype cannot hold values, or no row of a site is finite."""


class EngineError(ActstoreError):
    """An engine is not there, or work that it placed on machines failed."""


class ClusterLostError(EngineError):
    """A cluster cannot be reached, or is lost: the work itself may be fine."""


class StoreError(ActstoreError):
    """Something is wrong with a store."""


class NotAStoreError(StoreError):
    """There is no store at the URL."""


class FormatVersionError(StoreError):
    """The store has a format that this version does not know."""


class UnfinishedError(StoreError):
    """The harvest has not ended."""


class OthersUnfinishedError(UnfinishedError):
    """This worker's share of a harvest is done; other workers have units left."""


class ExistsError(StoreError):
    """The output is already there."""


class CatalogError(StoreError):
    """A name of a catalog leads to nothing, or not to what was published."""


class ObjectError(StoreError):
    """An object of the store is missing."""


class CorruptError(ObjectError):
    """An object's bytes are not those recorded."""


class StorageError(StoreError):
    """The medium refuses: no permission, no network."""


class FullError(StorageError):
    """No space is left, or a quota is used up.

    Its message is open at the end, so that a command can add what to do then.
    """


def first_line(error: Exception) -> str:
    """Return the first line of a library's error, or the name of its type."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


class HarvestWarning(UserWarning):
    """Something about a harvest that is no error.

    Such as a corpus that ends early, or documents and files that are left out.
    """


class CacheWarning(UserWarning):
    """A local cache of what lies far away does not work as it should.

    What is read is right all the same.
    """
