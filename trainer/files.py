"""Files that take the place of others, whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO


def replace_file(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Put a file in the place of another, whole or not at all, also when the process is killed or the power fails."""
    temporary = path.with_name(f".{path.name}.part")
    try:
        with temporary.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    with suppress(OSError):  # some network file systems refuse it for folders; the file itself is there
        _sync(path.parent)


def replace_content(path: Path, content: str | bytes) -> None:
    """`replace_file` with these bytes, or this text in UTF-8."""
    replace_file(path, lambda file: file.write(content.encode() if isinstance(content, str) else content))


@contextmanager
def replaced_folder(folder: Path) -> Iterator[Path]:
    """An empty folder that takes the place of another one, whole or not at all, when the block ends."""
    temporary, old = (folder.with_name(f".{folder.name}.{end}") for end in ("part", "old"))
    for left_by_a_killed_process in (temporary, old):
        shutil.rmtree(left_by_a_killed_process, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        if folder.exists():
            folder.rename(old)
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
