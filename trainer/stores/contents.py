"""What the file of one slide and one patch size must hold, and in what a file found differs from that. No pixels here.

A file is named by where its slide lies in the data set, not by what is in it: so a file that was made from an older
slide or with other settings is found, named in the error, and replaced by the next `widefield extract`.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trainer.config.schema import Config
from trainer.patches.index import PatchIndex
from trainer.slides.dataset import SlideRecord
from trainer.stores.coding import image_coding

FORMAT = 1
"""Raised when the meaning of a file changes: older ones are then extracted anew."""

Header = dict[str, Any]
"""Plain data for JSON: format, slide, slide_hash, annotation_hash, mpp, settings, num_patches, positions."""


@dataclass(frozen=True, eq=False)
class Contents:
    """One file: where, what it says of itself, and its patches' corners [n] int32 (level-0 pixels) in index order."""

    path: Path
    header: Header
    x: np.ndarray
    y: np.ndarray

    @property
    def patch_size(self) -> int:
        return int(self.header["settings"]["patch_size"])


def contents_of_slide(index: PatchIndex, config: Config, slide: int, suffix: str) -> Iterator[Contents]:
    """The files of one slide, one for each size that it has patches of."""
    for size in index.patch_sizes:
        rows = index.rows_of(slide, size)
        if rows.stop > rows.start:
            x, y = index.x[rows], index.y[rows]
            path = file_path(config, index.slides[slide], size, suffix)
            yield Contents(path, header_of(index, config, slide, size, x, y), x, y)


def file_path(config: Config, record: SlideRecord, size: int, suffix: str) -> Path:
    """PATH/p256/tumor_001-1a2b3c4d.h5: the digits tell slides of one name in different folders apart."""
    assert config.stores.path is not None  # StoresConfig refuses a store of extracted patches without it
    data = config.data.path.absolute()
    root = data.parent if config.data.format == "manifest" else data
    place = os.path.relpath(record.slide, root)  # data that moves with its manifest keeps its names
    digits = hashlib.sha256(place.encode()).hexdigest()[:8]
    return config.stores.path.absolute() / f"p{size}" / f"{record.slide.stem}-{digits}{suffix}"


def header_of(index: PatchIndex, config: Config, slide: int, size: int, x: np.ndarray, y: np.ndarray) -> Header:
    """All that determines a file's bytes. Stain normalisation is not in it: it is applied while reading."""
    info = index.infos[slide]
    settings = {
        "patch_size": size,
        "downsample": info.downsample,
        "image": image_coding(config.stores),
        "labels": config.data.model_dump(mode="json", exclude={"path", "format", "mpp"}),
    }
    return {
        "format": FORMAT,
        "slide": index.slides[slide].slide.name,
        "slide_hash": info.slide_hash,
        "annotation_hash": info.annotation_hash,
        "mpp": info.mpp * info.downsample if info.mpp else 0.0,
        "settings": json.loads(json.dumps(settings)),
        "num_patches": len(x),
        "positions": hashlib.sha256(x.tobytes() + y.tobytes()).hexdigest()[:16],
    }


def differences(found: Header, wanted: Header) -> list[str]:
    """What differs, as 'slide_hash: 12ab in the file, 34cd now'; empty for the file that is wanted."""
    old, new = _flat(found), _flat(wanted)
    return [f"{k}: {old.get(k, 'nothing')} in the file, {new.get(k, 'nothing')} now"
            for k in [*new, *(old.keys() - new.keys())] if old.get(k) != new.get(k)]  # fmt: skip


def _flat(header: Header) -> Header:
    return {**{k: v for k, v in header.items() if k != "settings"}, **header.get("settings", {})}
