"""Files that take the place of others, whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
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


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
