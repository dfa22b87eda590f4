"""Write the manifest of a folder of images and masks: `DIR/images/NAME.png` with `DIR/masks/NAME.png`.

python tools/glomeruli_manifest.py ../shared/fixtures/seg data/glomeruli.csv
mpirun -np 2 python -m trainer train configs/glomeruli.yaml data.path=data/glomeruli.csv
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path


def main() -> None:
    folder, manifest = Path(sys.argv[1]).resolve(), Path(sys.argv[2])
    rows = [(image, folder / "masks" / image.name) for image in sorted((folder / "images").glob("*.png"))]
    manifest.parent.mkdir(parents=True, exist_ok=True)
    with manifest.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["slide", "annotation"])
        writer.writerows(rows)
    print(f"{len(rows)} images in {manifest}")


if __name__ == "__main__":
    main()
