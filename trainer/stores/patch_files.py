"""Files of encoded patches: where the bytes of each patch lie, and how a file is written so that it is whole or absent.

What HDF5 and TFRecord have in common is that a patch's bytes lie together somewhere in a file. A format says where;
everything else (reading, checking, staging) is the same for both.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from trainer.locking import flock
from trainer.stores.coding import EncodedPatch
from trainer.stores.contents import Contents, Header


@dataclass(frozen=True, eq=False)
class PatchTable:
    """Where the bytes of each patch of a file lie, in index order; 20 bytes a patch.

    Args:
      start: [n] int64, byte of the file where the image begins.
      image_bytes: [n] uint32.
      label_offset: [n] uint32, from `start` to the labels; at least image_bytes.
      label_bytes: [n] uint32.
    """

    start: np.ndarray
    image_bytes: np.ndarray
    label_offset: np.ndarray
    label_bytes: np.ndarray

    @classmethod
    def of(cls, start: np.ndarray, image_bytes: np.ndarray, label_offset: np.ndarray, label_bytes: np.ndarray):
        lengths = (a.astype(np.uint32) for a in (image_bytes, label_offset, label_bytes))
        return cls(start.astype(np.int64), *lengths)

    def read(self, file: int, place: int) -> EncodedPatch:
        """One patch, in one read of the file.

        Raises:
          EOFError: the file is shorter than its table says.
        """
        image_bytes, label_offset = int(self.image_bytes[place]), int(self.label_offset[place])
        num_bytes = label_offset + int(self.label_bytes[place])
        found = os.pread(file, num_bytes, int(self.start[place]))
        if len(found) < num_bytes:
            raise EOFError(f"ends inside patch {place}")
        return EncodedPatch(found[:image_bytes], found[label_offset:])


PlacedPatch = tuple[int, EncodedPatch]
"""A patch and its place among the file's patches in index order; patches may be written in any order."""


class PatchFormat(Protocol):
    """How encoded patches lie in a file."""

    suffix: str

    def write(self, temporary: Path, contents: Contents, patches: Iterable[PlacedPatch]) -> None:
        """Write all patches to `temporary`, holding few of them in memory; it becomes `contents.path` afterwards.

        Equal contents and patches give equal bytes. Raises OSError.
        """

    def read_header(self, path: Path) -> Header:
        """What a file says of itself. Raises OSError, KeyError or ValueError where it is not whole."""

    def read_table(self, path: Path) -> PatchTable:
        """Where the patches of a whole file lie."""


class OpenFile:
    """A file that closes when nobody holds it any more: a cache may drop it while a thread reads."""

    def __init__(self, path: Path) -> None:
        self.number = -1
        self.number = os.open(path, os.O_RDONLY)

    def __del__(self) -> None:
        if self.number >= 0:
            os.close(self.number)


@contextmanager
def sole_writer(path: Path) -> Iterator[Path]:
    """A temporary file beside `path` that no other process writes; nothing of it is left where the block fails.

    Waits while another process holds it. The lock is the kernel's and dies with its holder, so the temporary file of
    a killed process is simply overwritten.
    """
    temporary = path.with_name(f".{path.name}.part")
    path.parent.mkdir(parents=True, exist_ok=True)
    with _locked(temporary) as lock:
        try:
            yield temporary
        finally:
            if _has_name(lock, temporary):  # not once it is in its place: the name may be another writer's already
                temporary.unlink()


@contextmanager
def _locked(path: Path) -> Iterator[int]:
    """The file under this name, locked; whoever waited while it was renamed starts again."""
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            flock(file, fcntl.LOCK_EX)
            if _has_name(file, path):
                yield file
                return
        finally:
            os.close(file)


def _has_name(file: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file), path.stat())
    except FileNotFoundError:
        return False


def put_in_place(temporary: Path, path: Path) -> None:
    """Give a written file its name. Its bytes reach the disk first: after a power cut it is whole or absent."""
    file = os.open(temporary, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)
    temporary.replace(path)
