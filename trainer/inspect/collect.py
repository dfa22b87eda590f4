"""Everything about one slide that has to be read from files: thumbnail, outlines, patches for the contact sheet."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from trainer.config.schema import Config, StoresConfig
from trainer.inspect.choose import contact_rows
from trainer.patches.build import parts_folder
from trainer.patches.index import PatchIndex
from trainer.patches.one_slide import part_path, read_part
from trainer.patches.sample import slide_rng
from trainer.slides.geometry import l0_length
from trainer.slides.labels import open_labels
from trainer.slides.slide import ImageSlide, Slide, open_slide
from trainer.slides.tissue import TissueMask, find_tissue
from trainer.stores import PatchStore, open_store

THUMBNAIL_PX = 1000
"""Longest side of a thumbnail."""
CUTOUT_PX = 256
"""Longest side of a patch on the contact sheet; larger ones are made smaller."""
_CUTOUTS, _CUTOUTS_PER_SIZE = 24, (4, 8)
"""Patches on the contact sheet of a slide, shared among the sizes; least and most for one size."""


@dataclass(frozen=True, eq=False)
class Cutout:
    """One patch: its row in the index, [h, w, 3] uint8 pixels and [h, w] uint8 labels, at most CUTOUT_PX wide."""

    row: int
    image: np.ndarray
    labels: np.ndarray


@dataclass(frozen=True, eq=False)
class SlideView:
    """One slide as it is drawn.

    Args:
      number: position in `index.slides`.
      format: what kind of file it is, in words.
      levels: (width, height, level-0 pixels per pixel) of each level.
      thumbnail: [h, w, 3] uint8.
      tissue: rings [N, 2] (x, y), level-0 pixels, and the share of the slide that is tissue; None without a mask.
      outlines: label -> rings, level-0 pixels.
      cutouts: of all sizes, ascending.
    """

    number: int
    format: str
    levels: tuple[tuple[int, int, float], ...]
    thumbnail: np.ndarray
    tissue: tuple[list[np.ndarray], float] | None
    outlines: dict[int, list[np.ndarray]]
    cutouts: tuple[Cutout, ...]


def open_direct_store(index: PatchIndex, config: Config) -> PatchStore:
    """Patches from the slides themselves, stains normalised: nothing need be extracted before it is looked at."""
    return open_store(index, config.model_copy(update={"stores": StoresConfig()}))


def collect(number: int, index: PatchIndex, config: Config, index_path: Path, store: PatchStore) -> SlideView:
    """Read what is shown of one slide.

    Raises:
      SlideError, AnnotationError: it cannot be read any more.
    """
    record = index.slides[number]
    slide = open_slide(record.slide)
    l0_per_px = max(1.0, max(slide.size) / THUMBNAIL_PX)
    mask = _tissue(number, index, config, index_path, slide)
    rows = _cutout_rows(number, index, config)
    return SlideView(
        number=number,
        format=_format(slide),
        levels=tuple((*s, d) for s, d in zip(slide.level_sizes, slide.downsamples, strict=True)),
        thumbnail=_thumbnail(slide, l0_per_px),
        tissue=(mask.outlines(), float(mask.mask.mean())) if mask else None,
        outlines=open_labels(record, slide, config.data).outlines(l0_per_px / 4),
        cutouts=tuple(_cutout(int(row), index, store) for row in rows),
    )


def _format(slide: Slide) -> str:
    kind = slide.path.suffix.lstrip(".").upper()
    if isinstance(slide, ImageSlide):
        return f"{kind}, plain image"
    return f"{kind}, " + (f"pyramid of {slide.level_count} levels" if slide.level_count > 1 else "one level")


def _thumbnail(slide: Slide, l0_per_px: float) -> np.ndarray:
    width, height = (max(1, round(side / l0_per_px)) for side in slide.size)
    return slide.resample(0, 0, (width, height), l0_per_px)


def _tissue(number: int, index: PatchIndex, config: Config, index_path: Path, slide: Slide) -> TissueMask | None:
    """The mask that indexing kept; found again where somebody has deleted it."""
    if config.index.min_tissue_fraction == 0:
        return None
    kept = part_path(parts_folder(config, index_path), index.slides[number], config)
    if kept.exists():
        return read_part(kept).tissue
    return find_tissue(slide, l0_length(min(index.patch_sizes), index.infos[number].downsample), config.index.tissue)


def _cutout_rows(number: int, index: PatchIndex, config: Config) -> np.ndarray:
    least, most = _CUTOUTS_PER_SIZE
    per_size = max(least, min(most, _CUTOUTS // len(index.patch_sizes)))
    chosen = []
    for size in index.patch_sizes:
        rows = index.rows_of(number, size)
        rng = slide_rng(config.seed, index.slides[number].slide.name, size)
        fractions = index.label_fractions[rows]
        chosen.append(rows.start + contact_rows(fractions, per_size, config.sampling.min_tumour_fraction, rng))
    return np.concatenate(chosen)


def _cutout(row: int, index: PatchIndex, store: PatchStore) -> Cutout:
    size = int(index.size[row])
    pixels, labels = store.read_at(int(index.slide[row]), int(index.x[row]), int(index.y[row]), size)
    side = min(size, CUTOUT_PX)
    nearest = (np.arange(side) + 0.5) * size / side
    picked = nearest.astype(np.int64)
    image = Image.fromarray(np.ascontiguousarray(pixels)).resize((side, side), Image.Resampling.BOX)
    return Cutout(row, np.asarray(image), labels[np.ix_(picked, picked)])
