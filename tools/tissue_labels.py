"""Slides with their own tissue masks as labels: real pixels through OpenSlide where nobody has annotated them.

  python tools/tissue_labels.py data/tissue ../shared/fixtures/wsi/CMU-1-Small-Region.svs \
      ../shared/fixtures/wsi/tcga-cr-7395-01a-01-ts1.svs
  widefield index configs/tissue.yaml
  mpirun -np 2 python -m trainer train configs/tissue.yaml

Writes one mask PNG per slide (0 glass, 1 tissue, at the slide's full size) and manifest.csv into the first argument.
The last slide validates, the others train.
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from trainer.slides.slide import open_slide
from trainer.slides.tissue import find_tissue

_SMALLEST_PATCH_PX = 64


def write_mask(slide_path: Path, mask_path: Path) -> None:
    """The tissue mask of a slide, every mask pixel repeated to level 0."""
    slide = open_slide(slide_path)
    tissue = find_tissue(slide, _SMALLEST_PATCH_PX)
    width, height = slide.size
    rows = np.minimum((np.arange(height) / tissue.downsample_y).astype(int), tissue.mask.shape[0] - 1)
    columns = np.minimum((np.arange(width) / tissue.downsample_x).astype(int), tissue.mask.shape[1] - 1)
    Image.fromarray(tissue.mask[np.ix_(rows, columns)].astype(np.uint8)).save(mask_path)


def main() -> None:
    folder, slides = Path(sys.argv[1]), [Path(p).resolve() for p in sys.argv[2:]]
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "manifest.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["slide", "annotation", "split"])
        for slide in slides:
            mask = folder / f"{slide.stem}-tissue.png"
            write_mask(slide, mask)
            writer.writerow([slide, mask.name, "val" if slide is slides[-1] else "train"])
    print(f"{len(slides)} slides in {folder / 'manifest.csv'}")


if __name__ == "__main__":
    main()
