"""Extracted patches in HDF5: one file per slide and patch size, readable with nothing but h5py.

    PATH/p256/tumor_001-1a2b3c4d.h5
      attributes   format, slide, slide_hash, annotation_hash, mpp (um per patch pixel), num_patches, positions (hash),
                   settings (JSON: patch_size, downsample, image coding, classes and their groups)
      x, y         [n] int32 top-left corners, level-0 pixels, in the order of the patch index
      where        [n, 4] int64: segment, first byte, bytes of the image, bytes of the labels
      data/0, 1..  [about 16 MiB] uint8: images (JPEG or PNG) each followed by its labels (zlib of [P, P] uint8)

Patch i with plain h5py:

    with h5py.File(path) as file:
        segment, start, image_bytes, label_bytes = file["where"][i]
        found = file[f"data/{segment}"][start : start + image_bytes + label_bytes].tobytes()
    image = np.asarray(PIL.Image.open(io.BytesIO(found[:image_bytes])))
    labels = np.frombuffer(zlib.decompress(found[image_bytes:]), np.uint8).reshape(image.shape[:2])

Reading here goes past HDF5, whose one lock is held while it reads: segments lie in the file in one piece, so their
addresses are asked for once and a patch is one `pread`. A patch of 20 kB took 2 us so, 7 us as a slice of a dataset
or as a chunk of its own, 38 us as a variable-length element (2026-11, page cache, one thread). Segments, not one long
dataset: its length would have to be known before the first patch is coded, or all bytes be written twice.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from trainer.stores.contents import Contents, Header
from trainer.stores.extracted import ExtractedStore
from trainer.stores.patch_files import PatchTable, PlacedPatch

_SEGMENT_BYTES = 16 << 20
_LAYOUT = "earliest"
"""The groups of newer layouts carry the time they were made; equal patches are to give equal bytes."""


class Hdf5Format:
    """See the module."""

    suffix = ".h5"

    def write(self, temporary: Path, contents: Contents, patches: Iterable[PlacedPatch]) -> None:
        with _File(temporary, "w+") as raw:
            with h5py.File(raw, "w", libver=_LAYOUT) as file:
                for name, value in contents.header.items():
                    file.attrs[name] = json.dumps(value, sort_keys=True) if isinstance(value, dict) else value
                where = np.zeros((len(contents.x), 4), np.int64)
                for number, segment in enumerate(_segments(patches, where)):
                    file.create_dataset(f"data/{number}", data=segment, track_times=False)
                    raw.raise_failure()
                for name, values in (("x", contents.x), ("y", contents.y), ("where", where)):
                    file.create_dataset(name, data=values, track_times=False)
            raw.raise_failure()

    def read_header(self, path: Path) -> Header:
        with h5py.File(path, "r", locking=False) as file:
            found = {k: v.item() if isinstance(v, np.generic) else v for k, v in file.attrs.items()}
        return {**found, "settings": json.loads(found["settings"])}

    def read_table(self, path: Path) -> PatchTable:
        with h5py.File(path, "r", locking=False) as file:
            segment, start, image_bytes, label_bytes = file["where"][:].T
            address = np.array([file[f"data/{n}"].id.get_offset() for n in range(len(file["data"]))], np.int64)
        return PatchTable.of(address[segment] + start, image_bytes, image_bytes, label_bytes)


class Hdf5Store(ExtractedStore):
    """A PatchStore over the files that `widefield extract` wrote."""

    format = Hdf5Format()


def _segments(patches: Iterable[PlacedPatch], where: np.ndarray) -> Iterator[np.ndarray]:
    """The bytes of the patches as they come, about 16 MiB at a time; fills `where`, [n, 4]."""
    buffer, number = bytearray(), 0
    for place, patch in patches:
        where[place] = number, len(buffer), len(patch.image), len(patch.labels)
        buffer += patch.image + patch.labels
        if len(buffer) >= _SEGMENT_BYTES:
            yield np.frombuffer(bytes(buffer), np.uint8)
            buffer, number = bytearray(), number + 1
    if buffer:
        yield np.frombuffer(bytes(buffer), np.uint8)


class _File(io.FileIO):
    """A file for HDF5 to write that keeps its first failure for later.

    HDF5 goes on writing while it closes, and what fails there is printed with a traceback instead of raised.
    """

    failure: OSError | None = None

    def raise_failure(self) -> None:
        if self.failure:
            raise self.failure

    def write(self, data: Any) -> int:
        rest = memoryview(data).cast("B")
        try:
            while rest:
                rest = rest[super().write(rest) :]
        except OSError as error:
            self.failure = self.failure or error
        return len(data)

    def truncate(self, size: int | None = None) -> int:
        try:
            return super().truncate(size)
        except OSError as error:
            self.failure = self.failure or error
            return size or 0
