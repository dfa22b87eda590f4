"""From a wanted resolution to one number: level-0 pixels per patch pixel."""

from __future__ import annotations

from trainer.config.schema import ResolutionConfig
from trainer.errors import SlideError
from trainer.slides.slide import Slide

SNAP = 0.02
"""Relative difference up to which a level is taken for the wanted mpp without resampling. Scanners of one model
differ by as much (0.2525 and 0.2485 um/px are both sold as 40x), and resampling by 1 % only blurs."""


def downsample_at(slide: Slide, resolution: ResolutionConfig, mpp: float | None) -> float:
    """Level-0 pixels per pixel at the wanted resolution; that of a level where one is near enough (`SNAP`).

    Args:
      mpp: micrometres per level-0 pixel of the slide, see `slide_mpp`.
    Raises:
      SlideError: no such level; mpp asked for and not known; or finer than the slide was scanned.
    """
    if resolution.level is not None:
        return slide.downsample(resolution.level)
    assert resolution.mpp is not None
    if mpp is None:
        raise SlideError(
            f"the file does not say its resolution (um/px), and patches are wanted at {resolution.mpp:g} um/px",
            where=str(slide.path),
            fix="give it in an `mpp` column of the manifest or as data.mpp=0.25 (predict: --mpp 0.25), or set "
            "index.resolution={level: 0}",
        )
    wanted = resolution.mpp / mpp
    near = [d for d in slide.downsamples if abs(wanted / d - 1) <= SNAP]
    if near:
        return min(near, key=lambda d: abs(wanted / d - 1))
    if wanted < 1:
        raise SlideError(
            f"was scanned at {mpp:g} um/px; patches at {resolution.mpp:g} um/px would be enlarged",
            where=str(slide.path),
            fix=f"index.resolution.mpp={mpp:g} or coarser, or take the slide out of the data set",
        )
    return wanted


def slide_mpp(slide: Slide, listed: float | None, default: float | None) -> float | None:
    """Micrometres per level-0 pixel: what the manifest lists, else what the file says, else `data.mpp`."""
    return listed or slide.mpp or default
