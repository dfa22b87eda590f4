"""What was found on a slide, as numbers for `summary.json`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from trainer.infer.regions import Region


def summary(
    slide: str,
    regions: Sequence[Region],
    class_px: Mapping[str, int],
    mpp: float | None,
    holes: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """Areas, lesions and one score of a predicted slide; JSON can hold it.

    Args:
      slide: its name.
      regions: as `regions_of` gives them; lesions keep the order.
      class_px: map pixels of every class, small regions included, in order of the classes.
      mpp: micrometres per map pixel; None where nobody knows, and then areas in mm2 are None.
      holes: parts that could not be read and so are not predicted, as plain data: where they are, and why.
    Returns:
      slide; mpp; classes: name -> area_px, area_mm2, num_lesions; slide_score: the highest peak probability of any
      lesion, 0 without one; lesions: class, x, y (level-0 pixels, where it is most probable), area_px, area_mm2,
      mean_probability, peak_probability; holes as given.
    """
    names = list(class_px)

    def areas(px: int) -> dict[str, Any]:
        return {"area_px": int(px), "area_mm2": None if mpp is None else float(px * mpp**2 / 1e6)}

    num_lesions = Counter(region.class_id for region in regions)
    return {
        "slide": slide,
        "mpp": mpp,
        "classes": {
            name: {**areas(px), "num_lesions": num_lesions[class_id]}
            for class_id, (name, px) in enumerate(class_px.items())
        },
        "slide_score": max((region.peak_probability for region in regions), default=0.0),
        "lesions": [
            {
                "class": names[region.class_id],
                "x": region.peak[0],
                "y": region.peak[1],
                **areas(region.area_px),
                "mean_probability": region.mean_probability,
                "peak_probability": region.peak_probability,
            }
            for region in regions
        ],
        "holes": [dict(hole) for hole in holes],
    }
