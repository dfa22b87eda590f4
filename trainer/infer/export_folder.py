"""The folder of an export: `export.json` says what it holds. Neither OpenVINO nor TensorFlow is needed to read that."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from trainer.errors import ExportError

ABOUT = "export.json"
FORMAT = "widefield-export-1"


def is_export(folder: Path) -> bool:
    return (folder / ABOUT).is_file()


def read_about(folder: Path) -> dict[str, Any]:
    """What `export.json` says.

    Raises:
      ExportError: it is missing, damaged, or of another version.
    """
    path = folder / ABOUT
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
        if about["format"] != FORMAT:
            raise ValueError(f"its format is {about['format']}, this version reads {FORMAT}")
        return about
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise ExportError(
            f"does not describe an export: {error}", where=str(path), fix="make it again with widefield export RUN_DIR"
        ) from None


def files_of(folder: Path) -> dict[str, str]:
    """sha256 of each file of the network, by name."""
    return {path.name: _sha256(path) for path in sorted(folder.glob("network.*")) if path.is_file()}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
