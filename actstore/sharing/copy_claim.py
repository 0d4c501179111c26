"""Claims a place for a copy of one store, so that nothing of two stores is mixed.

`copy.json` says which store is copied. It is written only where nothing lies, and goes
when the manifest is there. A store that `extend` has made larger is copied over what it
was before: extending only adds objects, and the card, `zarr.json` and the manifest are
written anew, as `extend` itself does it.
"""

from __future__ import annotations

from actstore.errors import CorruptError, ExistsError, ObjectError
from actstore.format import object_keys
from actstore.format.content_id import content_ids
from actstore.format.json_records import read_record
from actstore.format.manifest import parse_manifest
from actstore.format.object_sizes import MANIFEST_JSON
from actstore.format.storage import Storage
from actstore.sharing.hub_storage import GIT_ATTRIBUTES, HubStorage
from schemas.harvest import Plan
from schemas.manifest import CopyRecord, StoreManifest


class Claim:
    """A place that a copy of one store, or of a part of it, may write to.

    Attributes:
        target: The place.
    """

    def __init__(
        self, target: Storage, manifest: StoreManifest, plan: Plan | None
    ) -> None:
        """Make it; nothing is written yet.

        Args:
            target: Where the copy shall lie.
            manifest: Of the store that is copied.
            plan: Of the part that is copied; None: all of it.
        """
        self.target = target
        self._plan = plan
        self._record = _record(manifest, plan)
        # A part is made anew as a whole: what it was before is another store.
        self._ids = content_ids(manifest) if plan is None else ()

    def begin(self) -> bool:
        """Claim the place; return whether the copy is there already, finished.

        Raises:
            ExistsError: Something else lies there.
        """
        there = self._manifest_there()
        if there is None:
            if self._claim():
                return False
            # Another copy may have come to its end since the first look.
            there = self._manifest_there()
        if there is None:
            raise ExistsError(
                f"{self.target.url}: it is not empty, and no copy that was begun;"
                " choose another place"
            )
        return self._is_finished(there)

    def check(self) -> None:
        """Check that the place is still this copy's, before its manifest is written.

        Raises:
            ExistsError: A copy of a later state of the store has taken it over.
        """
        there = self._manifest_there()
        if there is not None:
            self._is_finished(there)
        begun = self._begun()
        if begun is not None and begun != self._record:
            raise self._other(begun)

    def end(self) -> None:
        """Take away what says that a copy has not ended."""
        self.target.delete(object_keys.COPY)
        if isinstance(self.target, HubStorage):
            self.target.commit()

    def _manifest_there(self) -> StoreManifest | None:
        """Return the manifest at the place, None where there is none."""
        if not self.target.exists(object_keys.MANIFEST):
            return None
        data = self.target.read(object_keys.MANIFEST, MANIFEST_JSON)
        return parse_manifest(data, self.target.url)

    def _is_finished(self, there: StoreManifest) -> bool:
        """Return whether a finished store is this copy; False: what it was before.

        Raises:
            ExistsError: It is another store.
        """
        record = self._record
        if self._plan is not None:
            names = tuple(site.name for site in there.sites)
            if there.subset == self._plan.subset and names == record.sites:
                return True
        elif there.content_id in self._ids:
            return there.content_id == record.content_id
        elif record.content_id in content_ids(there):
            raise ExistsError(
                f"{self.target.url}: a later state of this store is there, which was"
                f" extended since (content id {there.content_id[:12]}); nothing is"
                " copied over it. Choose another place"
            )
        raise ExistsError(
            f"{self.target.url}: another store is there, of content id"
            f" {there.content_id[:12]}; what is copied has {record.content_id[:12]}."
            " Choose another place, or remove it"
        )

    def _claim(self) -> bool:
        """Write what says which store is copied; or join a copy of the same.

        Returns False where something else lies there, or a copy has just ended.

        Raises:
            ExistsError: A copy of another store was begun there.
        """
        target = self.target
        data = self._record.to_json().encode()
        there = set(target.list()) - {GIT_ATTRIBUTES}
        key = object_keys.COPY
        # A listing may lag: it shows what was written after the record, and not that.
        if there and key not in there and not target.exists(key):
            return False
        if target.create(object_keys.COPY, data):
            return True
        begun = self._begun()
        if begun is None:
            return False
        if begun == self._record:
            return True
        is_whole = begun.sites is None and begun.units is None
        if not is_whole or begun.content_id not in self._ids:
            raise self._other(begun)
        # It was begun before the store was extended: what it has written stays.
        target.put(object_keys.COPY, data)
        return True

    def _begun(self) -> CopyRecord | None:
        """Return the record of the copy that was begun there, None for none."""
        try:
            return read_record(self.target, object_keys.COPY, CopyRecord)
        except CorruptError:
            raise
        except ObjectError:
            return None

    def _other(self, begun: CopyRecord) -> ExistsError:
        return ExistsError(
            f"{self.target.url}: a copy of another store (or of another part of it) was"
            f" begun there, of content id {begun.content_id[:12]}; what is copied has"
            f" {self._record.content_id[:12]}. Choose another place"
        )


def _record(manifest: StoreManifest, plan: Plan | None) -> CopyRecord:
    """Return what tells a copy of this from one of anything else."""
    if plan is None:
        return CopyRecord(content_id=manifest.content_id)
    assert plan.subset is not None
    return CopyRecord(
        content_id=manifest.content_id,
        sites=tuple(site.name for site in plan.sites),
        units=plan.subset.units,
    )
