"""The patch index: where every patch lies, what it holds and which side it is on. One Parquet file.

Building it is in `build.py`; this is the value and its file.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from trainer.config.schema import Config
from trainer.errors import DataError
from trainer.slides.dataset import SlideRecord, load_dataset

FORMAT = 1
"""Raised when the meaning of the file, or of what goes into it, changes: older files are then built anew."""
_METADATA_KEY = b"widefield"


@dataclass(frozen=True, eq=False)
class PatchIndex:
    """All patches of a data set, slide by slide, sizes ascending, row by row on the slide.

    Args:
      slides: all records with their split (train, val, test or unused), those without a patch too.
      slide: [n] int32 position in `slides`.
      x, y: [n] int64 top-left corner, level-0 pixels.
      level: [n] int32 pyramid level that is read.
      size: [n] int32 side in pixels of that level.
      tissue_fraction: [n] float32; 1 where the settings ask for no tissue mask.
      label_fractions: [n, C] float32 share of each class; ignored pixels are in none.
      class_names: C names.
      patch_sizes: the sizes the index was made for, ascending.
      fingerprint: of all that determined the index, see `fingerprint`.
      unreadable: one line for each slide that was passed over because it could not be read.
    """

    slides: tuple[SlideRecord, ...]
    slide: np.ndarray
    x: np.ndarray
    y: np.ndarray
    level: np.ndarray
    size: np.ndarray
    tissue_fraction: np.ndarray
    label_fractions: np.ndarray
    class_names: tuple[str, ...]
    patch_sizes: tuple[int, ...]
    fingerprint: str = ""
    unreadable: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.slide)

    @cached_property
    def split(self) -> np.ndarray:
        """[n] str: the split of each patch is that of its slide."""
        return np.array([s.split for s in self.slides] or [""])[self.slide]

    def select(self, size: int, split: str) -> np.ndarray:
        """[m] int64 row numbers of the patches of one size and split, ascending."""
        return np.flatnonzero((self.size == size) & (self.split == split))


def fingerprint(config: Config) -> str:
    """What an index made with this configuration would carry: equal fingerprints, equal index.

    Covers the index's settings, the slides and annotations that the data set holds now, and their file sizes.
    """
    return fingerprint_of(config, load_dataset(config.data))


def fingerprint_of(config: Config, records: list[SlideRecord]) -> str:
    """The same for records that are loaded already."""
    settings = {
        "format": FORMAT,
        "data": config.data.model_dump(mode="json", exclude={"path"}),  # the records say what was there
        "index": config.index.model_dump(mode="json"),
        "split": config.split.model_dump(mode="json"),
        "seed": config.seed,
        "patch_sizes": config.patch_sizes,
        "records": [_record_to_json(r) for r in records],
        "file_sizes": [[_file_size(r.slide), _file_size(r.annotation)] for r in records],
    }
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def write_index(index: PatchIndex, path: Path) -> None:
    """Write the index; equal indices give equal bytes. A reader never sees a half-written file."""
    path = Path(path)
    header = {
        "format": FORMAT,
        "fingerprint": index.fingerprint,
        "class_names": index.class_names,
        "patch_sizes": index.patch_sizes,
        "unreadable": index.unreadable,
        "slides": [_record_to_json(s) for s in index.slides],
    }
    table = _to_table(index).replace_schema_metadata({_METADATA_KEY: json.dumps(header, sort_keys=True).encode()})
    temporary = path.with_name(f".{path.name}.part")
    pq.write_table(table, temporary, compression="zstd")
    temporary.replace(path)


def read_index(path: Path) -> PatchIndex:
    """Read an index.

    Raises:
      DataError: missing, damaged, not a patch index, or of another version of the format.
    """
    path = Path(path)
    if not path.exists():
        raise DataError("there is no such file", where=str(path), fix="widefield index CONFIG makes it")
    try:
        table = pq.read_table(path)
        header = json.loads(table.schema.metadata[_METADATA_KEY])
        if header["format"] != FORMAT:
            raise ValueError(f"format {header['format']}, this version reads {FORMAT}")
        return _from_table(table, header)
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"is not a patch index that can be read ({type(error).__name__}: {error})",
            where=str(path),
            fix="delete it and run `widefield index`, or set index_file to another path",
        ) from error


def _to_table(index: PatchIndex) -> pa.Table:
    def per_slide(name: str) -> pa.DictionaryArray:
        values = [str(getattr(s, name)) for s in index.slides]
        words, codes = np.unique(values or [""], return_inverse=True)
        return pa.DictionaryArray.from_arrays(
            codes.astype(np.int32)[index.slide], pa.array(words.tolist(), pa.string())
        )

    numbers = {name: getattr(index, name) for name in ("x", "y", "level", "size", "tissue_fraction")}
    shares = {f"fraction_{name}": index.label_fractions[:, i] for i, name in enumerate(index.class_names)}
    slide = pa.DictionaryArray.from_arrays(index.slide, pa.array([str(s.slide) for s in index.slides], pa.string()))
    words = {name: per_slide(name) for name in ("patient", "centre", "split")}
    return pa.table({"slide": slide, **numbers, **shares, **words})


def _from_table(table: pa.Table, header: dict) -> PatchIndex:
    slides = tuple(_record_from_json(s) for s in header["slides"])
    position = {str(s.slide): i for i, s in enumerate(slides)}
    names = table["slide"].combine_chunks()
    codes = np.array([position[name] for name in names.dictionary.to_pylist()] or [0], np.int32)
    class_names = tuple(header["class_names"])
    shares = [table[f"fraction_{name}"].to_numpy() for name in class_names]
    numbers = {name: table[name].to_numpy() for name in ("x", "y", "level", "size", "tissue_fraction")}
    return PatchIndex(
        slides=slides,
        slide=codes[names.indices.to_numpy()],
        **numbers,
        label_fractions=np.stack(shares, axis=1),
        class_names=class_names,
        patch_sizes=tuple(header["patch_sizes"]),
        fingerprint=header["fingerprint"],
        unreadable=tuple(header["unreadable"]),
    )


def _record_to_json(record: SlideRecord) -> dict[str, str | None]:
    return {k: str(v) if isinstance(v, Path) else v for k, v in asdict(record).items()}


def _record_from_json(fields: dict) -> SlideRecord:
    record = SlideRecord(**fields)
    annotation = Path(record.annotation) if record.annotation is not None else None
    return replace(record, slide=Path(record.slide), annotation=annotation)


def _file_size(path: Path | None) -> int:
    return path.stat().st_size if path is not None and path.exists() else -1
