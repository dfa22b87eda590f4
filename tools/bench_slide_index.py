"""Tissue mask and patch positions of one giant slide, four patch sizes, polygons as annotation: time and peak memory.

Prints one JSON line. The process does nothing else, so its peak memory is that of indexing (libraries included).

    python tools/big_slide.py /tmp/giant.tif --width 100000 --height 100000 --from data/real/cmu_small_region.svs
    python tools/bench_slide_index.py /tmp/giant.tif
"""

from __future__ import annotations

import json
import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from trainer.config.schema import Config
from trainer.patches.one_slide import index_slide
from trainer.slides.dataset import SlideRecord
from trainer.slides.slide import open_slide

SIZES = (256, 704, 1024, 2048)
LESIONS, POINTS = 40, 2000


def write_lesions(path: Path, width: int, height: int) -> None:
    """ASAP XML with wavy outlines all over the slide, as detailed as hand-drawn ones."""
    rng, angle = np.random.default_rng(0), np.linspace(0, 2 * np.pi, POINTS, endpoint=False)
    drawn = []
    for number in range(LESIONS):
        radius = rng.uniform(500, 4000) * (1 + 0.15 * np.sin(rng.integers(3, 40) * angle))
        x = rng.uniform(6000, width - 6000) + radius * np.cos(angle)
        y = rng.uniform(6000, height - 6000) + radius * np.sin(angle)
        points = "".join(
            f'<Coordinate Order="{i}" X="{a:.2f}" Y="{b:.2f}"/>' for i, (a, b) in enumerate(zip(x, y, strict=True))
        )
        group = f'Name="{number}" Type="Polygon" PartOfGroup="_0"'
        drawn.append(f"<Annotation {group}><Coordinates>{points}</Coordinates></Annotation>")
    path.write_text(f"<ASAP_Annotations><Annotations>{''.join(drawn)}</Annotations></ASAP_Annotations>")


def main() -> None:
    slide = Path(sys.argv[1])
    with tempfile.TemporaryDirectory() as folder:
        annotation = Path(folder) / "lesions.xml"
        width, height = open_slide(slide).size
        write_lesions(annotation, width, height)
        stages = [{"patch_size": size, "local_batch_size": 1, "steps": 1} for size in SIZES]
        data = {"path": folder, "classes": [{"name": "normal"}, {"name": "tumour", "groups": ["_0"]}]}
        config = Config.model_validate({"name": "bench", "output": folder, "data": data, "curriculum": stages})
        started = time.perf_counter()
        found = index_slide(SlideRecord(slide, annotation, split="train"), config)
        seconds = time.perf_counter() - started
    peak_gb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    counts = {str(size): int(np.count_nonzero(found.size == size)) for size in SIZES}
    tissue = float(found.tissue.mask.mean()) if found.tissue else None
    result = {"width": width, "height": height, "patches": counts, "tissue": tissue}
    print(json.dumps({**result, "seconds": seconds, "peak_memory_gb": peak_gb}))


if __name__ == "__main__":
    main()
