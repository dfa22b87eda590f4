"""The patch index: where every patch lies, what it holds and which side it is on. One Parquet file.

Building it is in `build.py`; this is the value and its file. Twenty million patches are 40 bytes each in memory, and
are written and read column by column and a million rows at a time, so that nothing holds them twice.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from trainer.config.schema import Config
from trainer.errors import DataError
from trainer.slides.dataset import SlideRecord, load_dataset

FORMAT = 2
"""Raised when the meaning of the file, or of what goes into it, changes: older files are then built anew."""
_METADATA_KEY = b"widefield"
_ROW_GROUP = 1 << 20
_POSITIONS = ("x", "y", "size", "tissue_fraction")


@dataclass(frozen=True)
class SlideInfo:
    """What indexing found out about one slide; the defaults stand for one that was not indexed.

    Args:
      size: (width, height) in level-0 pixels.
      downsample: level-0 pixels per patch pixel.
      mpp: micrometres per level-0 pixel, None where nobody says it.
      slide_hash, annotation_hash: of the files' content, '' without one; see `slides.identity`.
      stains: the slide's stain vectors as `slides.stain` writes them, None without stain normalisation.
      annotation: what was drawn and what was passed over, as `slides.labels.AnnotationReport` writes it.
      num_dropped: patch size (as text, for JSON) -> positions left out for too little tissue.
    """

    size: tuple[int, int] = (0, 0)
    downsample: float = 1.0
    mpp: float | None = None
    slide_hash: str = ""
    annotation_hash: str = ""
    stains: str | None = None
    annotation: dict[str, Any] | None = None
    num_dropped: dict[str, int] | None = None


@dataclass(frozen=True, eq=False)
class PatchIndex:
    """All patches of a data set, slide by slide, sizes ascending, row by row on the slide.

    Args:
      slides: all records with their split (train, val, test or unused), those without a patch too.
      infos: what is known of each slide.
      slide: [n] int32 position in `slides`.
      x, y: [n] int32 top-left corner, level-0 pixels.
      size: [n] int32 side in pixels of the wanted resolution; `infos[slide].downsample` leads to level-0 pixels.
      tissue_fraction: [n] float32; 1 where the settings ask for no tissue mask.
      label_fractions: [n, C] float32 share of each class; ignored pixels are in none.
      class_names: C names.
      patch_sizes: the sizes the index was made for, ascending.
      fingerprint: of all that determined the index, see `fingerprint`.
      unreadable: one line for each slide that was passed over because it could not be read.
    """

    slides: tuple[SlideRecord, ...]
    infos: tuple[SlideInfo, ...]
    slide: np.ndarray
    x: np.ndarray
    y: np.ndarray
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
    def _splits(self) -> np.ndarray:
        """[number of slides] str."""
        return np.array([s.split for s in self.slides] or [""])

    def select(self, size: int, split: str) -> np.ndarray:
        """[m] int64 row numbers of the patches of one size and split, ascending."""
        return np.flatnonzero((self.size == size) & (self._splits == split)[self.slide])

    def rows_of(self, slide: int, size: int) -> slice:
        """The rows of one slide and size; they follow one another."""
        start, end = np.searchsorted(self.slide, np.array([slide, slide + 1], np.int32))  # of its dtype: no copy
        first, last = np.searchsorted(self.size[start:end], np.array([size, size + 1], np.int32))
        return slice(int(start + first), int(start + last))


def fingerprint(config: Config) -> str:
    """What an index made with this configuration would carry: equal fingerprints, equal index.

    Covers the index's settings, the slides and annotations that the data set holds now, and their sizes and times.
    """
    return fingerprint_of(config, load_dataset(config.data))


def fingerprint_of(config: Config, records: list[SlideRecord]) -> str:
    """The same for records that are loaded already."""
    settings = slide_settings(config) | {
        "split": config.split.model_dump(mode="json", exclude_none=True),
        "max_unreadable_fraction": config.index.max_unreadable_fraction,
        "records": [asdict_json(r) for r in records],
        "files": [[_file_state(r.slide), _file_state(r.annotation)] for r in records],
    }
    return digest(settings)


def slide_settings(config: Config) -> dict[str, Any]:
    """The settings that decide which patches one slide has, given the slide, its annotation and its split."""
    index = config.index.model_dump(mode="json", exclude={"max_unreadable_fraction"})
    chooses_by_class = config.index.positions == "random" or config.index.max_per_slide is not None
    return {
        "format": FORMAT,
        "data": config.data.model_dump(mode="json", exclude={"path", "format"}),  # the records say what was there
        "index": index,
        "positive_from": config.sampling.min_tumour_fraction if chooses_by_class else None,
        "stain": config.stain.model_dump(mode="json"),
        "seed": config.seed,
        "patch_sizes": config.patch_sizes,
    }


def digest(settings: Any) -> str:
    """sha256 of plain data, the same for equal data."""
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
        "slides": [asdict_json(s) for s in index.slides],
        "infos": [asdict_json(i) for i in index.infos],
    }
    metadata = {_METADATA_KEY: json.dumps(header, sort_keys=True).encode()}
    temporary = path.with_name(f".{path.name}.part")
    schema = _table(index, slice(0, 0)).schema.with_metadata(metadata)
    options = {"compression": "zstd", "use_dictionary": [f.name for f in schema if pa.types.is_dictionary(f.type)]}
    with pq.ParquetWriter(temporary, schema, column_encoding=_encodings(schema), **options) as writer:
        for rows in _row_groups(len(index)):
            writer.write_table(_table(index, rows).replace_schema_metadata(metadata))
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
        with pq.ParquetFile(path) as file:
            header = json.loads(file.schema_arrow.metadata[_METADATA_KEY])
            if header["format"] != FORMAT:
                raise ValueError(f"format {header['format']}, this version reads {FORMAT}")
            return _read(file, header)
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"is not a patch index that can be read ({type(error).__name__}: {error})",
            where=str(path),
            fix="delete it and run `widefield index`, or set index_file to another path",
        ) from error


def read_slide_infos(path: Path) -> tuple[SlideInfo, ...]:
    """What indexing found out about the slides of a stored index, without its patches; none if it cannot be read."""
    header = _stored_header(path)
    return _infos(header) if header else ()


def read_records(path: Path) -> tuple[SlideRecord, ...]:
    """The slides of a stored index with their splits, without its patches; none if it cannot be read."""
    header = _stored_header(path)
    return tuple(_record_from_json(s) for s in header["slides"]) if header else ()


def read_fingerprint(path: Path) -> str:
    """The fingerprint of a stored index without its patches; '' where the file is not an index of this version."""
    return str(_stored_header(path).get("fingerprint", ""))


def _stored_header(path: Path) -> dict[str, Any]:
    """What an index says of itself before its patches; empty where the file is not an index of this version."""
    try:
        header = json.loads(pq.read_schema(path).metadata[_METADATA_KEY])
        return header if header["format"] == FORMAT else {}
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError):
        return {}


def is_current(path: Path, config: Config) -> bool:
    """Whether the index at `path` is the one that this configuration and its files would give.

    Raises:
      DataError: see `load_dataset`.
    """
    return read_fingerprint(path) == fingerprint(config)


def _row_groups(num_rows: int) -> Iterator[slice]:
    for start in range(0, max(num_rows, 1), _ROW_GROUP):
        yield slice(start, min(start + _ROW_GROUP, num_rows))


def _encodings(schema: pa.Schema) -> dict[str, str]:
    """Positions of a grid are nearly constant differences; shares are mostly equal bytes."""
    return {f.name: "DELTA_BINARY_PACKED" if pa.types.is_integer(f.type) else "BYTE_STREAM_SPLIT"
            for f in schema if not pa.types.is_dictionary(f.type)}  # fmt: skip


def _table(index: PatchIndex, rows: slice) -> pa.Table:
    of_slide = index.slide[rows]

    def words(values: list[str]) -> pa.DictionaryArray:
        known, codes = np.unique(values or [""], return_inverse=True)
        return pa.DictionaryArray.from_arrays(codes.astype(np.int32)[of_slide], pa.array(known.tolist(), pa.string()))

    slide = pa.DictionaryArray.from_arrays(of_slide, pa.array([str(s.slide) for s in index.slides], pa.string()))
    numbers = {name: getattr(index, name)[rows] for name in _POSITIONS}
    shares = {f"fraction_{name}": index.label_fractions[rows, i] for i, name in enumerate(index.class_names)}
    facts = {name: words([getattr(s, name) for s in index.slides]) for name in ("patient", "centre", "split")}
    return pa.table({"slide": slide, **numbers, **shares, **facts})


def _read(file: pq.ParquetFile, header: dict[str, Any]) -> PatchIndex:
    slides = tuple(_record_from_json(s) for s in header["slides"])
    position = {str(s.slide): i for i, s in enumerate(slides)}
    num_rows = file.metadata.num_rows
    classes = tuple(header["class_names"])
    columns = {name: np.empty(num_rows, np.float32 if "fraction" in name else np.int32) for name in _POSITIONS}
    slide, shares = np.empty(num_rows, np.int32), np.empty((num_rows, len(classes)), np.float32)
    start = 0
    for group in range(file.num_row_groups):
        table = file.read_row_group(group).combine_chunks()
        rows = slice(start, start := start + table.num_rows)
        names = table["slide"].combine_chunks()
        codes = np.array([position[name] for name in names.dictionary.to_pylist()] or [0], np.int32)
        slide[rows] = codes[names.indices.to_numpy()]
        for name, values in columns.items():
            values[rows] = table[name].to_numpy()
        for i, name in enumerate(classes):
            shares[rows, i] = table[f"fraction_{name}"].to_numpy()
    return PatchIndex(
        slides=slides,
        infos=_infos(header),
        slide=slide,
        **columns,
        label_fractions=shares,
        class_names=classes,
        patch_sizes=tuple(header["patch_sizes"]),
        fingerprint=header["fingerprint"],
        unreadable=tuple(header["unreadable"]),
    )


def _infos(header: dict[str, Any]) -> tuple[SlideInfo, ...]:
    return tuple(SlideInfo(**{**i, "size": tuple(i["size"])}) for i in header["infos"])


def asdict_json(value: Any) -> dict[str, Any]:
    """A dataclass as plain data for JSON; paths become text."""
    return {k: str(v) if isinstance(v, Path) else v for k, v in asdict(value).items()}


def _record_from_json(fields: dict[str, Any]) -> SlideRecord:
    record = SlideRecord(**fields)
    annotation = Path(record.annotation) if record.annotation is not None else None
    return replace(record, slide=Path(record.slide), annotation=annotation)


def _file_state(path: Path | None) -> list[int]:
    if path is None or not path.exists():
        return []
    state = path.stat()
    return [state.st_size, state.st_mtime_ns]
