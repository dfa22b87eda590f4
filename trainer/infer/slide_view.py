"""A slide as a network wants it: at the resolution and with the stains that it was trained on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from trainer.config.schema import ResolutionConfig
from trainer.errors import SlideError
from trainer.infer.network import Recipe
from trainer.infer.plan import TilePlan
from trainer.patches.grid import grid_points
from trainer.patches.one_slide import slide_stains
from trainer.slides.geometry import l0_length
from trainer.slides.resolution import downsample_at, slide_mpp
from trainer.slides.slide import Slide, open_slide
from trainer.slides.stain import Stains, normalise_stains
from trainer.slides.tissue import TissueMask, find_tissue

_THUMBNAIL_PX, _THUMBNAIL_PART_PX = 2048, 256
_STAIN_POINTS = 256
"""Places tried for stains on a slide that has damaged tiles."""


@dataclass(frozen=True)
class SlidePixels:
    """A slide in map pixels: all that reading tiles takes.

    Args:
      downsample: level-0 pixels per map pixel.
      stains: of the slide, None without normalisation or where too little is stained.
    """

    slide: Slide
    downsample: float
    stains: Stains | None

    def read(self, x: int, y: int, size: int) -> np.ndarray:
        """[size, size, 3] uint8 RGB from map pixel (x, y), white outside the slide.

        Raises:
          SlideError: that part of the slide cannot be read.
        """
        image = self.slide.resample(x * self.downsample, y * self.downsample, size, self.downsample)
        return image if self.stains is None else normalise_stains(image, self.stains)


@dataclass(frozen=True)
class SlideView(SlidePixels):
    """A slide, and what there is to predict of it.

    Args:
      mpp: micrometres per map pixel, None where nobody says it.
      size: (width, height) of the map.
      tissue: None where everything is predicted.
      notes: what is to be said of all that, a line each.
    """

    mpp: float | None
    size: tuple[int, int]
    tissue: TissueMask | None
    notes: tuple[str, ...]

    def tiles_with_tissue(self, plan: TilePlan) -> list[int]:
        """Numbers of the tiles that count at some pixel of tissue, so that none is missing at any such pixel."""
        if self.tissue is None:
            return list(range(len(plan)))
        return np.flatnonzero(self.tissue.touches(plan.kept_boxes * self.downsample)).tolist()

    def thumbnail(self) -> tuple[np.ndarray, float]:
        """[h, w, 3] uint8 RGB of at most 2048 px a side, and its level-0 pixels per pixel; white where damaged."""
        downsample = max(1.0, max(self.slide.size) / _THUMBNAIL_PX)
        width, height = (max(1, int(n / downsample)) for n in self.slide.size)
        image = np.full((height, width, 3), 255, np.uint8)
        for top in range(0, height, _THUMBNAIL_PART_PX):
            for left in range(0, width, _THUMBNAIL_PART_PX):
                part = image[top : top + _THUMBNAIL_PART_PX, left : left + _THUMBNAIL_PART_PX]
                size = part.shape[1], part.shape[0]
                pixels = _readable(self.slide, left * downsample, top * downsample, size, downsample)
                if pixels is not None:
                    part[:] = pixels
        return image, downsample


def open_view(path: Path, recipe: Recipe, listed_mpp: float | None = None) -> SlideView:
    """Open a slide, and find its resolution, tissue and stains.

    Args:
      listed_mpp: micrometres per level-0 pixel that a manifest says, which wins over the slide.
    Raises:
      SlideError: it cannot be opened, or has no pixels as fine as the network wants them.
    """
    slide = open_slide(path)
    known = slide_mpp(slide, listed_mpp, recipe.mpp)
    downsample = downsample_at(slide, recipe.resolution, known)
    notes = _resolution_notes(slide, downsample, recipe.resolution)
    l0_smallest = l0_length(recipe.patch_sizes[0], downsample)
    tissue = None
    if recipe.tissue:
        try:
            tissue = find_tissue(slide, l0_smallest, recipe.tissue)
        except SlideError as error:
            notes.append(f"tissue cannot be found, so everything is predicted: {error.what}")
        else:
            notes += [] if tissue.mask.any() else ["no tissue was found: the map is empty"]
    stains = None
    if recipe.stain.normalise != "none":
        points = grid_points(slide.size, l0_smallest, l0_smallest)
        if tissue:
            points = points[tissue.fraction(points, l0_smallest) >= recipe.min_tissue_fraction]
        stains = _stains(slide, points, downsample, recipe)
        notes += [] if stains else ["too little is stained for normalisation: colours stay as they are"]
    size = max(1, round(slide.size[0] / downsample)), max(1, round(slide.size[1] / downsample))
    return SlideView(slide, downsample, stains, known and known * downsample, size, tissue, tuple(notes))


def _resolution_notes(slide: Slide, downsample: float, resolution: ResolutionConfig) -> list[str]:
    if downsample in slide.downsamples:
        return []
    return [f"is resampled to the {resolution.mpp:g} um/px of training: every {downsample:.3g} px become one"]


def _stains(slide: Slide, l0_points: np.ndarray, downsample: float, recipe: Recipe) -> Stains | None:
    smallest = recipe.patch_sizes[0]
    try:
        return slide_stains(slide, l0_points, downsample, smallest, recipe.seed)
    except SlideError:
        some = l0_points[:: -(-len(l0_points) // _STAIN_POINTS)]
        side = smallest, smallest
        is_readable = [_readable(slide, x, y, side, downsample) is not None for x, y in some.tolist()]
        return slide_stains(slide, some[is_readable], downsample, smallest, recipe.seed)


def _readable(slide: Slide, x: float, y: float, size: tuple[int, int], downsample: float) -> np.ndarray | None:
    """Pixels of a region, None where it cannot be read."""
    try:
        return slide.resample(x, y, size, downsample)
    except SlideError:
        return None
