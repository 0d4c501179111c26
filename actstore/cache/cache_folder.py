"""The files of a cache: how they are named, made, read and removed.

    CACHEDIR.TAG                          what the folder is, for backups and for us
    ledger-<16 digits>.sqlite             which files there are, and when each was used
    size                                  the bytes that all of it may take
    ledger.lock                           held by who changes files or ledger
    processes/<owner>                     locked as long as that process lives
    files/<key>                           a digest of key and checksum, and the bytes
    files/<key>.<size>.<owner>.filling    one that a process is making

A filling is there, empty, from the moment that its room is reserved. So all that the
ledger says follows from the files, and it can be made again from them.

Only names of these forms are ever removed, in this folder itself, and no link is
followed. All methods raise OSError where the disk refuses.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
import weakref
from pathlib import Path
from typing import NamedTuple

import google_crc32c
import numpy as np
from blake3 import blake3

from actstore.cache.claimed_folder import (
    claim_folder,
    opened_folder,
    refuse_links,
    write_whole,
)
from actstore.format.storage import Part

KEY_BYTES = 32
HEAD_BYTES = 32
BLOCK_BYTES = 4096
# What a file takes beside its blocks: its row of the ledger, its name and its inode.
ENTRY_BYTES = 512
_FILE = re.compile(r"[0-9a-f]{64}", re.ASCII)
_FILLING = re.compile(
    r"([0-9a-f]{64})\.([0-9]{1,12})\.([0-9a-f]{32})\.filling", re.ASCII
)
_LEDGER = re.compile(r"ledger-[0-9a-f]{16}\.sqlite", re.ASCII)
_LEDGER_FILE = re.compile(_LEDGER.pattern + r"(-wal|-shm|-journal)?", re.ASCII)
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
_WRITE = os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC


class KeptFile(NamedTuple):
    """A file of the cache, as the folder lists it.

    Attributes:
        key: The key of its bytes.
        size: Its bytes on the disk, with the head.
        written: When it was written, in seconds since 1970.
    """

    key: bytes
    size: int
    written: float


class Filling(NamedTuple):
    """A file that a process is making.

    Attributes:
        key: The key of its bytes.
        size: How many bytes it will keep, without the head.
        owner: The process.
    """

    key: bytes
    size: int
    owner: str

    @property
    def name(self) -> str:
        """The name of its file."""
        return f"{self.key.hex()}.{self.size}.{self.owner}.filling"


def cost(size: int) -> int:
    """Return the bytes of disk that are reckoned for a file that keeps `size` bytes."""
    blocks = -(-(size + HEAD_BYTES) // BLOCK_BYTES)
    return blocks * BLOCK_BYTES + ENTRY_BYTES


class CacheFolder:
    """The folder of a cache, opened, or made where there is none.

    Safe to use from several threads.

    Attributes:
        path: The folder, without links.
        lock: The path of the ledger's lock.
        processes: The folder of the processes' locks.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Open the folder.

        Raises:
            SpecError: There is something else.
            FormatVersionError: A newer actstore has made it.
            OSError: It cannot be read or written.
        """
        self.path = Path(os.path.realpath(path))
        claim_folder(self.path)
        self.lock = self.path / "ledger.lock"
        self.processes = self.path / "processes"
        self._files = opened_folder(self.path / "files")
        # Closed when nobody has this any more: threads may read until the very end.
        weakref.finalize(self, os.close, self._files).atexit = False
        os.close(opened_folder(self.processes))
        ledgers = [p for p in self.path.iterdir() if _LEDGER_FILE.fullmatch(p.name)]
        refuse_links(self.path, (*ledgers, self.lock))

    def read(self, key: bytes, size: int, *, checked: bool) -> bytes | None:
        """Return what is kept under a key; None where nothing is.

        Args:
            key: The key.
            size: How many bytes there must be.
            checked: Whether to compare them with the head.

        Raises:
            ValueError: It is damaged.
        """
        try:
            fd = os.open(key.hex(), _READ, dir_fd=self._files)
        except FileNotFoundError:
            return None
        try:
            data = os.pread(fd, size, HEAD_BYTES)
            if len(data) != size:
                raise ValueError(f"{len(data)} bytes, wanted {size}")
            if checked and os.pread(fd, HEAD_BYTES, 0) != _head(key, data):
                raise ValueError("its bytes are not those that were written")
        finally:
            os.close(fd)
        return data

    def has(self, key: bytes) -> bool:
        """Return whether something is kept under a key."""
        return self._is_there(key.hex())

    def begin(self, filling: Filling) -> None:
        """Make an empty file, which shows that room is reserved."""
        flags = _WRITE | os.O_CREAT | os.O_EXCL
        os.close(os.open(filling.name, flags, 0o666, dir_fd=self._files))

    def fill(self, filling: Filling, data: Part) -> None:
        """Write a file whose room is reserved, and show it under its key.

        It is not synced: after a crash of the machine the head tells what is not
        whole.

        Raises:
            FileNotFoundError: The reservation has been taken back.
        """
        assert len(data) == filling.size
        fd = os.open(filling.name, _WRITE, dir_fd=self._files)
        try:
            _write_all(fd, _head(filling.key, data))
            _write_all(fd, data)
        finally:
            os.close(fd)
        os.replace(
            filling.name,
            filling.key.hex(),
            src_dir_fd=self._files,
            dst_dir_fd=self._files,
        )

    def drop(self, key: bytes) -> None:
        """Remove a file; nothing happens where there is none."""
        self._unlink(key.hex())

    def abandon(self, filling: Filling) -> bool:
        """Remove a filling; return whether its file has been finished instead."""
        self._unlink(filling.name)
        return self.has(filling.key)

    def kept(self) -> tuple[list[KeptFile], list[Filling]]:
        """Return the finished files, and those that are being made.

        What has any other name, or is no regular file, is not of the cache.
        """
        files: list[KeptFile] = []
        fillings: list[Filling] = []
        for entry in os.scandir(self._files):
            if not entry.is_file(follow_symlinks=False):
                continue
            filling = _FILLING.fullmatch(entry.name)
            if filling is not None:
                key = bytes.fromhex(filling[1])
                fillings.append(Filling(key, int(filling[2]), filling[3]))
            elif _FILE.fullmatch(entry.name):
                with contextlib.suppress(FileNotFoundError):
                    info = entry.stat(follow_symlinks=False)
                    key = bytes.fromhex(entry.name)
                    files.append(KeptFile(key, info.st_size, info.st_mtime))
        return files, fillings

    def ledger(self) -> Path | None:
        """Return the path of the ledger; None where there is not exactly one."""
        found = [p for p in self.path.iterdir() if _LEDGER.fullmatch(p.name)]
        return found[0] if len(found) == 1 else None

    def new_ledger(self) -> Path:
        """Remove the ledger, and make an empty one; return its path.

        It has a name of its own: SQLite, when it closes a database that is removed,
        removes the journal of whatever has the name by then.
        """
        for path in list(self.path.iterdir()):
            if _LEDGER_FILE.fullmatch(path.name):
                path.unlink(missing_ok=True)
        path = self.path / f"ledger-{os.urandom(8).hex()}.sqlite"
        # SQLite would make it for this user alone, whatever the umask.
        os.close(os.open(path, _WRITE | os.O_CREAT | os.O_EXCL, 0o666))
        return path

    def read_size(self) -> int | None:
        """Return the size that was written; None where none is."""
        try:
            fd = os.open(self.path / "size", _READ)
        except OSError:
            return None
        try:
            text = os.read(fd, 32)
        finally:
            os.close(fd)
        return int(text) if re.fullmatch(rb"[0-9]{1,18}", text) else None

    def write_size(self, size: int) -> None:
        """Write the size that the cache may have."""
        write_whole(self.path / "size", str(size))

    def check_there(self) -> None:
        """Raise FileNotFoundError where the folder was moved or removed.

        Else whoever takes its lock would make a new folder at the path.
        """
        there = (self.path / "files").lstat()
        if not os.path.samestat(there, os.fstat(self._files)):
            raise FileNotFoundError(errno.ENOENT, "another folder is there now")

    def free_bytes(self) -> int:
        """Return what is free on the disk."""
        info = os.statvfs(self.path)
        return info.f_bavail * info.f_frsize

    def _is_there(self, name: str) -> bool:
        try:
            info = os.stat(name, dir_fd=self._files, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return stat.S_ISREG(info.st_mode)

    def _unlink(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name, dir_fd=self._files)


def _head(key: bytes, data: Part) -> bytes:
    """Return what a file begins with: under another key, or of other bytes, it differs.

    The bytes come into it by their crc32c: their digest would take four times as long,
    and every process makes it anew for each file.
    """
    checksum = google_crc32c.value(np.frombuffer(data, np.uint8))
    return blake3(b"%d %d" % (len(data), checksum), key=key).digest()


def _write_all(fd: int, data: Part) -> None:
    """Write all bytes: a disk that fills up may take a part of them first."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
