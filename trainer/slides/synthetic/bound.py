"""How well a classifier with a limited field of view can do on these slides: geometry and chance, no pixels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from trainer.slides.synthetic.layout import MARKER_RADIUS_PX, TUMOUR_SHARE

# A marker changes pixels up to 0.5 px outside its radius (soft edge), and JPEG spreads a change over the 8 x 8 block
# that it falls in (no chroma subsampling), so nothing farther than this from the centre, on either axis, knows the
# label.
MARKER_REACH_PX = MARKER_RADIUS_PX + 0.5 + 7.5

# Octile midpoints of the mean radii of 1620 compartments (24 slides of 2048 and 3072 px), in level-0 px.
TYPICAL_RADII_PX = (100.0, 102.7, 106.4, 110.7, 114.9, 119.0, 123.6, 128.4)

Placement = Literal["tiled", "centred"]


def marker_seen_share(
    window_px: float, *, placement: Placement = "tiled", l0_radii: Sequence[float] = TYPICAL_RADII_PX
) -> float:
    """Expected share of compartment pixels whose window holds a pixel that the compartment's marker could have changed.

    A window is a square of `window_px` level-0 px. `tiled`: the slide is cut into windows, and a pixel is judged from
    the one that it lies in (a patch, at a random offset from the compartment). `centred`: each pixel is judged from
    the window around it. With the marker's reach h as a box the two axes are independent: a pixel d px from the centre
    sees the marker with probability clip(1 - (d - h) / window, 0, 1), or just if d <= window / 2 + h. Compartments are
    discs here; counted on slides with grids at random places, the share is within 0.01 of it. A grid at a fixed place
    differs more, for compartments line up along the edge of the tissue: 256 px tiles from (0, 0) see 0.73 on slides of
    2048 px and 0.80 on slides of 3072 px, where this gives 0.78.
    """
    seen = total = 0.0
    for radius in l0_radii:
        d = np.arange(0.5, radius)  # one quadrant, by symmetry
        beyond = np.maximum(d - MARKER_REACH_PX, 0)
        axis = np.clip(1 - beyond / window_px, 0, 1) if placement == "tiled" else beyond <= window_px / 2
        is_inside = np.hypot(d[:, None], d[None, :]) < radius
        seen += float((axis[:, None] * axis[None, :] * is_inside).sum())
        total += float(is_inside.sum())
    return seen / total


def context_bound(
    window_px: float,
    *,
    placement: Placement = "tiled",
    tumour_share: float = TUMOUR_SHARE,
    l0_radii: Sequence[float] = TYPICAL_RADII_PX,
) -> float:
    """The accuracy on pixels of compartments that no classifier limited to such windows exceeds, in expectation.

    Right wherever its window reaches the marker, and the more frequent class everywhere else. It is an upper bound: it
    grants the label from a single changed pixel at the rim of a marker. Other markers in the window tell nothing worth
    knowing: labels are shuffled over the compartments of a slide.

    Returns:
      For tiles of 64, 128, 256 and 512 px 0.71, 0.83, 0.91 and 0.95; for centred windows of 256 px 1.
    """
    seen = marker_seen_share(window_px, placement=placement, l0_radii=l0_radii)
    return seen + (1 - seen) * max(tumour_share, 1 - tumour_share)
