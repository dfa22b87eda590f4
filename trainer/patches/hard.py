"""Hard negatives: a list of points where a network was wrong, turned into a mark on the patches that hold them."""

from __future__ import annotations

import csv
from collections import defaultdict
from pathlib import Path

import numpy as np
import shapely

from trainer.errors import DataError, nearest
from trainer.patches.index import PatchIndex
from trainer.slides.geometry import l0_boxes, l0_length

_COLUMNS = ("slide", "x", "y")


def hard_rows(index: PatchIndex, rows: np.ndarray, path: Path) -> np.ndarray:
    """Which patches hold a listed point.

    Args:
      rows: [n] row numbers of the index.
      path: CSV with the columns slide (file name, with or without suffix), x, y (level-0 pixels); others are ignored.
    Returns:
      [n] bool.
    Raises:
      DataError: unreadable, a column missing, a value that is no number, or a slide that the index does not hold.
    """
    points = _read_points(path, index)
    is_hard = np.zeros(len(rows), bool)
    for slide, l0_points in points.items():
        tree = shapely.STRtree(shapely.points(l0_points))
        places = np.flatnonzero(index.slide[rows] == slide)
        sizes = index.size[rows[places]]
        for size in np.unique(sizes):
            chosen = places[sizes == size]
            corners = np.stack([index.x[rows[chosen]], index.y[rows[chosen]]], axis=1)
            boxes = l0_boxes(corners, l0_length(int(size), index.infos[slide].downsample))
            hit, _ = tree.query(boxes, predicate="intersects")
            is_hard[chosen[np.unique(hit)]] = True
    return is_hard


def _read_points(path: Path, index: PatchIndex) -> dict[int, list[tuple[float, float]]]:
    numbers = {name: n for n, s in enumerate(index.slides) for name in (s.slide.name, s.slide.stem)}
    points: dict[int, list[tuple[float, float]]] = defaultdict(list)
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            missing = [c for c in _COLUMNS if c not in (reader.fieldnames or [])]
            if missing:
                raise DataError(
                    f"has no column '{missing[0]}'", where=f"{path}:1", fix=f"columns: {','.join(_COLUMNS)}"
                )
            for row in reader:
                where = f"{path}:{reader.line_num}"
                name = Path(row["slide"] or "").name
                if name not in numbers:
                    raise DataError(f"slide '{name}' is not in the data set", where=where, fix=nearest(name, numbers))
                points[numbers[name]].append(_point(row, where))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"cannot be read as CSV: {error}", where=str(path), fix="set sampling.hard_negatives") from None
    return points


def _point(row: dict[str, str], where: str) -> tuple[float, float]:
    try:
        x, y = float(row["x"]), float(row["y"])
    except (TypeError, ValueError):
        x = y = float("nan")
    if not np.isfinite([x, y]).all():
        raise DataError(f"x '{row['x']}', y '{row['y']}' is no point", where=where, fix="level-0 pixels, as numbers")
    return x, y
