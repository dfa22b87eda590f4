from __future__ import annotations

from pathlib import Path

import pytest
from small_slides import pyramid, rgb

from trainer.config.schema import ResolutionConfig
from trainer.errors import SlideError
from trainer.slides.resolution import downsample_at, slide_mpp
from trainer.slides.slide import Slide, open_slide


@pytest.fixture
def slide(tmp_path: Path) -> Slide:
    return open_slide(pyramid(tmp_path / "s.tif", rgb(400, 400), (1, 2, 4)))


def test_a_level_gives_its_downsample(slide: Slide) -> None:
    assert downsample_at(slide, ResolutionConfig(level=2), None) == 4.0
    with pytest.raises(SlideError, match="there is no level 3") as error:
        downsample_at(slide, ResolutionConfig(level=3), None)
    assert "index.resolution.level=2" in error.value.fix


@pytest.mark.parametrize(
    ("wanted", "mpp", "downsample"),
    [(0.5, 0.25, 2), (0.5, 0.2525, 2), (1, 0.2455, 4), (0.25, 0.2539, 1), (0.75, 0.25, 3), (2.5, 0.25, 10)],
)
def test_mpp_takes_a_level_that_is_near_enough_and_any_downsample_else(
    slide: Slide, wanted: float, mpp: float, downsample: float
) -> None:
    assert downsample_at(slide, ResolutionConfig(mpp=wanted), mpp) == downsample


def test_mpp_that_the_slide_cannot_give_is_refused_with_what_it_has(slide: Slide) -> None:
    with pytest.raises(SlideError, match=r"s\.tif: was scanned at 0\.5 um/px; patches at 0\.25 um/px would be"):
        downsample_at(slide, ResolutionConfig(mpp=0.25), 0.5)
    with pytest.raises(SlideError, match=r"does not say its resolution") as error:
        downsample_at(slide, ResolutionConfig(mpp=0.25), None)
    assert "data.mpp" in error.value.fix and "manifest" in error.value.fix


def test_manifest_wins_over_the_file_and_the_file_over_the_default(slide: Slide) -> None:
    slide.mpp = 0.5
    assert (slide_mpp(slide, 0.3, 0.4), slide_mpp(slide, None, 0.4)) == (0.3, 0.5)
    slide.mpp = None
    assert (slide_mpp(slide, None, 0.4), slide_mpp(slide, None, None)) == (0.4, None)


def test_real_slides_say_their_resolution_or_do_not(fixtures: Path) -> None:
    cmu = open_slide(fixtures / "wsi" / "CMU-1-Small-Region.svs")
    assert downsample_at(cmu, ResolutionConfig(mpp=0.5), cmu.mpp) == 1.0
    assert downsample_at(cmu, ResolutionConfig(mpp=1.0), cmu.mpp) == pytest.approx(2.004, abs=1e-3)
    assert open_slide(fixtures / "wsi" / "tcga-cr-7395-01a-01-ts1.svs").mpp is None
