"""What an annotation gave, for people who check a data set before they train on it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from trainer.config.schema import IGNORE_LABEL, DataConfig
from trainer.slides.annotations.drawing import Drawing


@dataclass(frozen=True)
class AnnotationReport:
    """Plain data; `dataclasses.asdict` gives what JSON can hold.

    Args:
      source: ASAP, QuPath, ImageScope, mask image, or none (all of the slide is the first class).
      groups: number of areas of each group of the file, skipped ones included; empty for masks.
      class_areas_px: class name -> level-0 pixels inside the slide; None for a large mask without a pyramid.
      ignored_area_px: level-0 pixels that no loss and no metric counts; None likewise.
      passed_over: reason, in the singular -> how many.
    """

    source: str
    groups: dict[str, int]
    class_areas_px: dict[str, float] | None
    ignored_area_px: float | None
    passed_over: dict[str, int]


def report_of(
    source: str,
    config: DataConfig,
    slide_size: tuple[int, int],
    label_areas: Mapping[int, float] | None,
    drawing: Drawing | None = None,
    passed_over: Mapping[str, int] | None = None,
) -> AnnotationReport:
    """A report from the areas of all labels but 0, which takes what is left of the slide.

    Args:
      label_areas: label -> level-0 pixels; None where nobody counted them.
      drawing: the file that was read, where it was one.
      passed_over: more than the drawing says.
    """
    groups = drawing.groups if drawing else {}
    skipped = {f"area of skipped group '{g}'": n for g, n in groups.items() if g in config.skip_groups}
    reasons = {**(drawing.passed_over if drawing else {}), **skipped, **(passed_over or {})}
    if label_areas is None:
        return AnnotationReport(source, groups, None, None, reasons)
    others = {label: float(area) for label, area in label_areas.items() if label != 0}
    areas = {0: max(0.0, slide_size[0] * slide_size[1] - sum(others.values()))} | others
    classes = {name: areas.get(label, 0.0) for label, name in enumerate(config.class_names)}
    return AnnotationReport(source, groups, classes, areas.get(IGNORE_LABEL, 0.0), reasons)
