"""What an index holds, for people: patches by size and split, and one line for every slide."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np

from trainer.patches.index import PatchIndex, SlideInfo

_SPLITS = ("train", "val", "test")
_SHOWN = 20


def summary(index: PatchIndex) -> str:
    """Patches per size and split with the mean share of each class, then what was passed over in annotations."""
    header = f"{'size':>6} {'split':>6} {'slides':>7} {'patches':>8}  "
    lines = [header + "  ".join(f"{c:>10}" for c in index.class_names)]
    for size in index.patch_sizes:
        for split in _SPLITS:
            rows = index.select(size, split)
            if len(rows):
                shares = index.label_fractions[rows].mean(axis=0)
                slides = len(np.unique(index.slide[rows]))
                cells = "  ".join(f"{s:>10.1%}" for s in shares)
                lines.append(f"{size:>6} {split:>6} {slides:>7} {len(rows):>8}  {cells}")
    told = zip(index.slides, map(_passed_over, index.infos), strict=True)
    passed_over = [f"{record.slide.name}: passed over {reasons}" for record, reasons in told if reasons]
    more = len(passed_over) - _SHOWN
    return "\n".join([*lines, *passed_over[:_SHOWN], *([f"... and {more} more slides"] if more > 0 else [])])


def slides_csv(path: Path) -> Path:
    """The table of the slides beside the index at `path`."""
    return path.with_suffix(".slides.csv")


def write_slides_csv(index: PatchIndex, path: Path) -> None:
    """Write one row for every slide beside the index at `path`."""
    out = slides_csv(path)
    temporary = out.with_name(f".{out.name}.part")
    rows = slide_rows(index)
    with temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]) if rows else ["slide"])
        writer.writeheader()
        writer.writerows(rows)
    temporary.replace(out)


def slide_rows(index: PatchIndex) -> list[dict[str, Any]]:
    """One dict for every slide: its facts, patches per size, and what its annotation holds."""
    return [_slide_row(index, n) for n in range(len(index.slides))]


def _slide_row(index: PatchIndex, number: int) -> dict[str, Any]:
    record, info = index.slides[number], index.infos[number]
    drawn = info.annotation or {}
    areas = drawn.get("class_areas_px") or {}
    tissue = index.tissue_fraction[index.rows_of(number, index.patch_sizes[0])]
    return {
        "slide": record.slide.name,
        "split": record.split,
        "patient": record.patient,
        "centre": record.centre,
        "width": info.size[0],
        "height": info.size[1],
        "mpp": info.mpp,
        **{f"patches_{size}": _count(index.rows_of(number, size)) for size in index.patch_sizes},
        "mean_tissue": round(float(tissue.mean()), 4) if len(tissue) else None,
        "groups": "; ".join(f"{name}: {count}" for name, count in (drawn.get("groups") or {}).items()),
        **{f"{name}_mpx": _scaled(areas.get(name), 1e-6) for name in index.class_names},
        **{f"{name}_mm2": _scaled(areas.get(name), (info.mpp or np.nan) ** 2 * 1e-6) for name in index.class_names},
        "passed_over": _passed_over(info),
        "stains": "estimated" if info.stains else None,
    }


def _count(rows: slice) -> int:
    return rows.stop - rows.start


def _scaled(area_px: float | None, factor: float) -> float | None:
    return None if area_px is None or np.isnan(factor) else round(area_px * factor, 4)


def _passed_over(info: SlideInfo) -> str:
    reasons = (info.annotation or {}).get("passed_over") or {}
    return "; ".join(f"{count} x {reason}" for reason, count in reasons.items())
