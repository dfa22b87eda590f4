"""Which slides a data set holds: one record per slide, from a manifest CSV or a CAMELYON directory.

Slides are not opened here; only their names, folders and neighbours are read.
"""

from __future__ import annotations

import csv
import logging
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.config.schema import DataConfig
from trainer.errors import DataError, nearest

SPLITS = ("train", "val", "test")
_COLUMNS = ("slide", "annotation", "patient", "centre", "split", "mpp")
_REQUIRED_COLUMNS = ("slide", "annotation")
_STAGE_TABLES = ("stage_labels.csv", "stages.csv")
_PATIENTS_PER_CENTRE = 20
"""CAMELYON17 numbers its patients through: 000 to 019 are centre 0, 020 to 039 centre 1, and so on."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SlideRecord:
    """One slide of a data set. Paths are absolute; '' is 'unknown'.

    Args:
      annotation: ASAP or ImageScope XML, GeoJSON or a mask image; None means that all of the slide is the first class.
      split: train, val, test or '' (to be drawn); in a patch index also 'unused'.
      mpp: micrometres per level-0 pixel where the manifest says it, which wins over the file.
    """

    slide: Path
    annotation: Path | None
    patient: str = ""
    centre: str = ""
    split: str = ""
    mpp: float | None = None


def load_dataset(config: DataConfig) -> list[SlideRecord]:
    """The slides of a data set in a fixed order: a manifest's own, else by name.

    Raises:
      DataError: nothing there, a file that is named is missing, or a contradiction; names file and line.
    """
    path = config.path.absolute()
    if not path.exists():
        raise DataError("there is no such file or directory", where=str(path), fix="set data.path")
    records = _LOADERS[config.format](path)
    if not records:
        raise DataError(f"holds no slide in the {config.format} format", where=str(path), fix=_EXPECTED[config.format])
    return records


def load_manifest(path: Path) -> list[SlideRecord]:
    """Rows of a CSV with the columns slide, annotation and, optional, patient, centre, split, mpp.

    Relative paths start at the CSV's folder. An empty annotation means that all of the slide is the first class.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, strict=True)
            _check_columns(reader.fieldnames or [], path)
            records = [_manifest_row(row, path, f"{path}:{reader.line_num}") for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"cannot be read as CSV: {error}", where=str(path), fix="save it as UTF-8 CSV") from None
    _check_unique(records, path)
    return records


def _check_columns(found: Iterable[str], path: Path) -> None:
    found = [name.strip() for name in found]
    for name in found:
        if name not in _COLUMNS:
            raise DataError(f"unknown column '{name}'", where=str(path), fix=nearest(name, _COLUMNS))
    for name in _REQUIRED_COLUMNS:
        if name not in found:
            raise DataError(
                f"has no column '{name}'",
                where=f"{path}:1",
                fix=f"the first line names the columns: {','.join(_COLUMNS)}",
            )


def _manifest_row(row: dict[Any, Any], path: Path, where: str) -> SlideRecord:
    if None in row:
        raise DataError("has more values than the manifest has columns", where=where, fix="quote values with commas")
    values = {str(k).strip(): (v or "").strip() for k, v in row.items() if isinstance(v, str | None)}
    if not values["slide"]:
        raise DataError("names no slide", where=where, fix="fill in the slide column or delete the line")
    split = values.get("split", "")
    if split and split not in SPLITS:
        raise DataError(f"split '{split}' is not known", where=where, fix=f"one of {', '.join(SPLITS)}, or empty")
    slide = _existing(values["slide"], path, "slide", where)
    annotation = _existing(values["annotation"], path, "annotation", where) if values["annotation"] else None
    mpp = _positive(values.get("mpp", ""), "mpp", where)
    return SlideRecord(slide, annotation, values.get("patient", ""), values.get("centre", ""), split, mpp)


def _positive(text: str, column: str, where: str) -> float | None:
    try:
        value = float(text) if text else None
    except ValueError:
        value = -1.0
    if value is not None and not 0 < value < 100:
        raise DataError(f"{column} '{text}' is no size in um", where=where, fix="a number such as 0.25, or empty")
    return value


def _existing(name: str, manifest: Path, column: str, where: str) -> Path:
    found = manifest.parent / name
    if not found.is_file():
        raise DataError(f"{column} {found} does not exist", where=where, fix="correct the path or delete the line")
    return found


def _check_unique(records: list[SlideRecord], path: Path) -> None:
    seen: set[Path] = set()
    for record in records:
        if (resolved := record.slide.resolve()) in seen:
            raise DataError(f"slide {record.slide} is listed twice", where=str(path), fix="delete one of the lines")
        seen.add(resolved)


def load_camelyon16(root: Path) -> list[SlideRecord]:
    """normal_*.tif, tumor_*.tif and test_*.tif anywhere below the root, with the XML of the same name.

    A tumour slide needs its XML; a test slide without one is normal and, like all test slides, has split 'test'.
    Every slide is its own patient (the data set does not tell more).
    """
    slides, annotations = _files(root, r"(normal|tumor|test)_\d+")
    records = []
    for name, slide in slides.items():
        annotation = annotations.get(name)
        if name.startswith("tumor") and annotation is None:
            raise DataError(
                f"tumour slide {slide} has no {slide.stem}.xml anywhere below {root}",
                where=str(root),
                fix="unpack lesion_annotations.zip there",
            )
        annotation = None if name.startswith("normal") else annotation
        records.append(SlideRecord(slide, annotation, split="test" if name.startswith("test") else ""))
    return records


def load_camelyon17(root: Path) -> list[SlideRecord]:
    """patient_XXX_node_Y.tif anywhere below the root.

    Used are slides with an XML of the same name, and slides that the stage table (stage_labels.csv or stages.csv)
    calls negative. The others hold tumour that nobody outlined: they are left out and counted in the log. The centre
    is that of the folder `centre_N` (or `center_N`), else follows from the patient's number.
    """
    slides, annotations = _files(root, r"patient_\d+_node_\d+")
    stages = _stages(root)
    is_used = {name: name in annotations or stages.get(name) == "negative" for name in slides}
    records = [
        SlideRecord(slide, annotations.get(name), name.split("_node_")[0], _centre(name, slide, root))
        for name, slide in slides.items()
        if is_used[name]
    ]
    num_left_out = len(slides) - len(records)
    if num_left_out:
        log.info("%s: %d slides left out: no outlines, and no stage table calls them negative", root, num_left_out)
    return records


def _files(root: Path, stem_pattern: str) -> tuple[dict[str, Path], dict[str, Path]]:
    """(slides, XML files) below a folder by lower-case stem, sorted by it."""
    found: dict[str, dict[str, Path]] = {".tif": {}, ".xml": {}}
    for path in sorted(root.rglob("*")):
        name, files = path.stem.lower(), found.get(path.suffix.lower())
        if files is None or not re.fullmatch(stem_pattern, name) or not path.is_file():
            continue
        if name in files:
            raise DataError(f"{files[name]} and {path} have the same name", where=str(root), fix="keep one of them")
        files[name] = path
    return tuple(dict(sorted(files.items())) for files in found.values())  # type: ignore[return-value]


def _stages(root: Path) -> dict[str, str]:
    """Slide name -> stage (negative, itc, micro, macro) from the table that CAMELYON17 publishes."""
    tables = sorted(p for name in _STAGE_TABLES for p in root.rglob(name))
    stages: dict[str, str] = {}
    for table in tables:
        with table.open(newline="", encoding="utf-8-sig") as file:
            rows = [row for row in csv.reader(file) if len(row) >= 2]
        stages |= {row[0].strip().lower().removesuffix(".tif"): row[1].strip().lower() for row in rows}
    return stages


def _centre(name: str, slide: Path, root: Path) -> str:
    for folder in slide.relative_to(root).parts[:-1]:
        if match := re.fullmatch(r"cent(?:re|er)_(\d+)", folder.lower()):
            return str(int(match[1]))
    return str(int(name.split("_")[1]) // _PATIENTS_PER_CENTRE)


_LOADERS: dict[str, Callable[[Path], list[SlideRecord]]] = {
    "manifest": load_manifest,
    "camelyon16": load_camelyon16,
    "camelyon17": load_camelyon17,
}
_EXPECTED = {
    "manifest": "add a line per slide",
    "camelyon16": "data.path is the folder that holds normal_*.tif and tumor_*.tif, at any depth",
    "camelyon17": "data.path holds patient_XXX_node_Y.tif with their XML, or a stage_labels.csv, at any depth",
}
