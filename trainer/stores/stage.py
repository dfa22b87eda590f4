"""Node-local staging: the encoded bytes of the patches one rank will read, copied to a fast disk before training."""

from __future__ import annotations

import os
import re
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from shutil import disk_usage
from typing import Any

import numpy as np

from trainer.errors import StoreError
from trainer.stores.coding import EncodedPatch
from trainer.stores.extracted import ExtractedStore, PatchFiles
from trainer.stores.patch_files import PatchTable

_THREADS = 8
"""Copying waits for a shared file system more than it computes."""
_ROWS_PER_TASK = 256


def stage(store: ExtractedStore, rows: np.ndarray, folder: str) -> ExtractedStore:
    """A store that reads some index rows from a local copy, and everything else where `store` reads it.

    The copy is one file without a name: it goes when this process ends, however it ends.

    Args:
      rows: [n] index rows, in any order, repeated or not.
      folder: such as '$TMPDIR'; environment variables are filled in.
    Raises:
      StoreError: a variable is not set, the folder cannot be written, or has too little space.
    """
    assert isinstance(store.source, PatchFiles), "a store is staged once"
    return type(store)(store.index, store.config, StagedFiles(store.source, np.unique(rows), staging_folder(folder)))


def staging_folder(text: str) -> Path:
    """The folder that `stores.stage_to` means on this node."""
    folder = os.path.expandvars(text)
    unset = re.findall(r"\$\{?(\w+)", folder)
    fix = "stores.stage_to=/some/local/folder, or null to read from stores.path"
    if unset:
        raise StoreError(f"{text}: {', '.join(unset)} is not set on this node", where="stores.stage_to", fix=fix)
    path = Path(folder)
    if not (path.is_dir() and os.access(path, os.W_OK)):
        raise StoreError(f"{path} is not a folder that can be written on this node", where="stores.stage_to", fix=fix)
    return path


class StagedFiles:
    """A Source: staged rows from the local copy, others from the shared files. `rows` ascend."""

    def __init__(self, shared: PatchFiles, rows: np.ndarray, folder: Path) -> None:
        self._shared, self._rows = shared, rows
        image_bytes, label_bytes = np.array([shared.lengths(int(r)) for r in rows], np.int64).reshape(-1, 2).T
        num_bytes = image_bytes + label_bytes
        self._table = PatchTable.of(np.cumsum(num_bytes) - num_bytes, image_bytes, image_bytes, label_bytes)
        self._file = _reserved(folder, int(num_bytes.sum()))
        with ThreadPoolExecutor(_THREADS) as pool:
            list(pool.map(self._copy, range(0, len(rows), _ROWS_PER_TASK)))

    def encoded(self, row: int) -> EncodedPatch:
        place = self._place(row)
        return self._shared.encoded(row) if place is None else self._table.read(self._file.fileno(), place)

    def file_of(self, row: int) -> Path:
        return self._shared.file_of(row)

    def _place(self, row: int) -> int | None:
        place = int(np.searchsorted(self._rows, row))
        return place if place < len(self._rows) and self._rows[place] == row else None

    def _copy(self, first: int) -> None:
        for place in range(first, min(first + _ROWS_PER_TASK, len(self._rows))):
            patch = self._shared.encoded(int(self._rows[place]))
            os.pwrite(self._file.fileno(), bytes(patch.image) + bytes(patch.labels), int(self._table.start[place]))


def _reserved(folder: Path, num_bytes: int) -> Any:
    """A nameless file in `folder` with that much space, which no other rank of the node can take meanwhile."""
    file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - open as long as the store
    try:
        os.posix_fallocate(file.fileno(), 0, max(num_bytes, 1))
    except OSError as error:
        file.close()
        raise StoreError(
            f"{error.strerror}: the patches of this rank need {num_bytes / 2**20:.1f} MiB, {folder} has "
            f"{disk_usage(folder).free / 2**20:.1f} MiB free",
            where="stores.stage_to",
            fix="stores.stage_to=/a/larger/folder, or null to read from stores.path",
        ) from error
    return file
