"""Which slide a file is, told by its content, so that what was made from another version of it is noticed."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from trainer.errors import SlideError

WHOLE_BYTES = 8 << 20
"""Files up to this size are hashed whole."""
_END_BYTES = 1 << 20
_BLOCK_BYTES, _NUM_BLOCKS = 64 << 10, 64
_COMPANIONS = (".mrxs",)
"""Formats that keep their pixels in a folder of the same name beside the file."""


def slide_hash(path: Path) -> str:
    """A sha256 in hex that takes milliseconds whatever the size of the slide.

    Up to 8 MiB it is that of the whole content (`sha256sum`). Of larger files it covers the size, the first and the
    last MiB, where TIFF keeps its directories, and 64 blocks of 64 KiB evenly spread: another scan, another conversion
    or a truncated copy differ, while a few bytes changed on purpose somewhere may not. For .mrxs the names and sizes of
    the files in the slide's folder count too.

    Raises:
      SlideError: the file is missing or cannot be read.
    """
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size > WHOLE_BYTES:
                digest.update(f"sampled, {size} bytes\n".encode())
            for start, length in _parts(size):
                file.seek(start)
                digest.update(file.read(length))
        for name, num_bytes in _companion_files(path):
            digest.update(f"\n{name} {num_bytes}".encode())
    except OSError as error:
        raise SlideError(
            f"cannot be read: {error.strerror or error}", where=str(path), fix="correct the path in the manifest"
        ) from None
    return digest.hexdigest()


def _parts(size: int) -> list[tuple[int, int]]:
    """(start, bytes) of what is hashed of a file."""
    if size <= WHOLE_BYTES:
        return [(0, size)]
    last = size - _END_BYTES
    between = last - _END_BYTES - _BLOCK_BYTES  # the last block ends where the last MiB begins
    starts = [_END_BYTES + i * between // (_NUM_BLOCKS - 1) for i in range(_NUM_BLOCKS)]
    return [(0, _END_BYTES), *((start, _BLOCK_BYTES) for start in starts), (last, _END_BYTES)]


def _companion_files(path: Path) -> list[tuple[str, int]]:
    folder = path.with_suffix("")
    if path.suffix.lower() not in _COMPANIONS or not folder.is_dir():
        return []
    return sorted((p.relative_to(folder).as_posix(), p.stat().st_size) for p in folder.rglob("*") if p.is_file())
