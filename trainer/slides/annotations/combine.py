"""Drawn areas -> one geometry per label, by the configuration's meaning of groups."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import shapely
from shapely.geometry import MultiPolygon
from shapely.geometry.base import BaseGeometry

from trainer.config.schema import IGNORE_LABEL, DataConfig
from trainer.errors import AnnotationError
from trainer.slides.annotations.drawing import Annotation, Drawing

OUTSIDE_TOLERANCE_PX = 16.0
"""Level-0 pixels by which an area may pass the slide's border, past which a hand slips; it is cut off there."""
_SHOWN_GROUPS = 20


def label_geometries(drawing: Drawing, config: DataConfig, slide_size: tuple[int, int]) -> dict[int, BaseGeometry]:
    """The area of each label, so that no two overlap.

    Skipped groups are not there. Ignore groups win over everything; then exclusion groups are holes in every class;
    then a later class wins over an earlier one. The first class has no geometry: it takes what is left.

    Args:
      slide_size: (width, height) in level-0 pixels.
    Returns:
      Label (1 to the number of classes - 1, or IGNORE_LABEL) -> MultiPolygon; labels without area are left out.
    Raises:
      AnnotationError: a group that the configuration does not know, or areas outside the slide.
    """
    _check_groups(drawing, config)
    annotations = [a for a in drawing.areas if a.group not in config.skip_groups]
    _check_inside(annotations, slide_size, drawing)
    ignored = _union(annotations, config.ignore_groups, slide_size)
    areas = {IGNORE_LABEL: ignored}
    taken = np.concatenate([ignored, _union(annotations, config.exclusion_groups, slide_size)])
    for label in range(len(config.classes) - 1, 0, -1):
        area = _union(annotations, config.classes[label].groups, slide_size)
        areas[label] = _without(area, taken)
        taken = np.concatenate([taken, area])
    return {label: MultiPolygon(list(area)) for label, area in areas.items() if len(area)}


# Areas are arrays of polygons here, and not one MultiPolygon each: with the borders of 100,000 cells, overlays of the
# few polygons that do meet take seconds where overlays of everything took a minute.


def _union(annotations: Sequence[Annotation], groups: Sequence[str], slide_size: tuple[int, int]) -> np.ndarray:
    """[N] polygons, disjoint and inside the slide, that cover the areas of some groups."""
    drawn = shapely.get_parts([a.area for a in annotations if a.group in groups])
    parts = _parts(shapely.disjoint_subset_union_all(drawn))
    left, top, right, bottom = shapely.bounds(parts).T
    (width, height), slide = slide_size, shapely.box(0, 0, *slide_size)
    passes = (left < 0) | (top < 0) | (right > width) | (bottom > height)
    return np.concatenate([parts[~passes], _parts(shapely.intersection(parts[passes], slide))])


def _without(parts: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Polygons [N] less what any of the others [M] covers."""
    part, other = shapely.STRtree(others).query(parts, predicate="intersects")
    is_met = np.isin(np.arange(len(parts)), part)
    first = np.flatnonzero(np.diff(part, prepend=-1))  # pairs come ordered by part
    cuts = [shapely.union_all(others[met]) for met in np.split(other, first[1:])] if len(part) else []
    return np.concatenate([parts[~is_met], _parts(shapely.difference(parts[is_met], np.array(cuts, object)))])


def _parts(geometries: BaseGeometry | np.ndarray) -> np.ndarray:
    """[N] the polygons of geometries, without the points and lines that overlays leave behind."""
    parts = shapely.get_parts(shapely.get_parts(geometries))
    return parts[(shapely.get_type_id(parts) == shapely.GeometryType.POLYGON) & ~shapely.is_empty(parts)]


def _check_groups(drawing: Drawing, config: DataConfig) -> None:
    classes = [group for c in config.classes for group in c.groups]
    known = {*classes, *config.exclusion_groups, *config.ignore_groups, *config.skip_groups}
    for annotation in drawing.areas:
        if annotation.group not in known:
            raise AnnotationError(
                f"group '{annotation.group}' has no class. The file has {_shown(drawing.groups)}; the configuration "
                f"knows {', '.join(sorted(known)) or 'none'}",
                where=f"{drawing.path}, annotation '{annotation.name}'",
                fix=f"add '{annotation.group}' to data.classes[i].groups, data.exclusion_groups, data.ignore_groups or "
                f"data.skip_groups",
            )


def _shown(groups: dict[str, int]) -> str:
    listed = ", ".join(f"'{group[:100]}' ({count})" for group, count in list(groups.items())[:_SHOWN_GROUPS])
    more = len(groups) - _SHOWN_GROUPS
    return f"{listed} and {more} more groups" if more > 0 else listed


def _check_inside(annotations: Sequence[Annotation], slide_size: tuple[int, int], drawing: Drawing) -> None:
    if not annotations:
        return
    (width, height), bounds = slide_size, shapely.bounds([a.area for a in annotations])
    left, top, right, bottom = bounds.T
    if ((left >= width) | (top >= height) | (right <= 0) | (bottom <= 0)).all():
        together = (left.min(), top.min(), right.max(), bottom.max())
        raise AnnotationError(
            f"lies outside its slide with all of its {len(annotations)} area(s): {_extent(together, slide_size)}. "
            f"Is it the annotation of another slide?",
            where=str(drawing.path),
            fix="correct the annotation column of the manifest",
        )
    beyond = np.max([-left, -top, right - width, bottom - height], axis=0) > OUTSIDE_TOLERANCE_PX
    if beyond.any():
        worst = int(np.argmax(beyond))
        raise AnnotationError(
            f"lies outside its slide: {_extent(bounds[worst], slide_size)}",
            where=f"{drawing.path}, annotation '{annotations[worst].name}'",
            fix="check that the file belongs to this slide and was drawn at level 0",
        )


def _extent(bounds: Sequence[float] | np.ndarray, slide_size: tuple[int, int]) -> str:
    left, top, right, bottom = bounds
    return (
        f"x {left:.0f} to {right:.0f}, y {top:.0f} to {bottom:.0f}, but the slide has {slide_size[0]} x "
        f"{slide_size[1]} level-0 px"
    )
