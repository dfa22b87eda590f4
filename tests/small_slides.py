"""Slides, masks and annotations of a few hundred pixels, with contents known in closed form."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from PIL import Image

from trainer.config import Config
from trainer.config.schema import DataConfig

PINK, GLASS = (220, 120, 170), (244, 244, 244)
Points = Sequence[tuple[float, float]]


def rgb(width: int, height: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def tissue_slide(path: Path, width: int = 256, height: int = 256, x0: int = 0, x1: int | None = None) -> Path:
    """A plain image with tissue in columns x0 to x1 and glass elsewhere."""
    pixels = np.full((height, width, 3), GLASS, np.uint8)
    pixels[:, x0:x1] = PINK
    Image.fromarray(pixels).save(path)
    return path


def pyramid(path: Path, pixels: np.ndarray, downsamples: tuple[int, ...] = (1, 2, 4)) -> Path:
    """A lossless tiled pyramid that OpenSlide opens; a level takes every n-th pixel."""
    with tifffile.TiffWriter(path) as file:
        for n in downsamples:
            file.write(
                pixels[::n, ::n], tile=(64, 64), compression="deflate", photometric="rgb", subfiletype=int(n > 1),
                metadata=None,
            )  # fmt: skip
    return path


def asap(path: Path, *areas: tuple[str, Points], kind: str = "Polygon") -> Path:
    """ASAP XML with (group, points) areas, named 'Annotation 0', 'Annotation 1', ..."""
    drawn = ""
    for number, (group, points) in enumerate(areas):
        inside = "".join(f'<Coordinate Order="{i}" X="{x}" Y="{y}" />' for i, (x, y) in enumerate(points))
        drawn += (
            f'<Annotation Name="Annotation {number}" Type="{kind}" PartOfGroup="{group}">'
            f"<Coordinates>{inside}</Coordinates></Annotation>"
        )
    path.write_text(f"<ASAP_Annotations><Annotations>{drawn}</Annotations></ASAP_Annotations>")
    return path


def square(x: float, y: float, side: float) -> Points:
    return [(x, y), (x + side, y), (x + side, y + side), (x, y + side)]


CLASSES: list[dict[str, Any]] = [
    {"name": "normal"},
    {"name": "stroma", "groups": ["stroma"], "mask_values": [1, "#00ff00"]},
    {"name": "tumour", "groups": ["_0", "Tumor"], "mask_values": [2, "#ff0000"]},
]


def data_config(path: Path = Path("slides.csv"), **changes: Any) -> DataConfig:
    settings: dict[str, Any] = {"path": path, "classes": CLASSES, "exclusion_groups": ["_2"], "ignore_groups": ["blur"]}
    return DataConfig.model_validate({**settings, "ignore_mask_values": [9], **changes})


def run_config(folder: Path, sizes: tuple[int, ...] = (32, 64), **sections: Any) -> Config:
    """A run over `folder/slides.csv`."""
    data = data_config(folder / "slides.csv").model_dump(mode="json")
    stages = [{"patch_size": s, "local_batch_size": 1, "steps": 1} for s in sizes]
    return Config.model_validate(
        {"name": "t", "output": folder / "run", "data": data, "curriculum": stages} | sections  # later ones win
    )


def manifest(folder: Path, *rows: str, header: str = "slide,annotation,patient,centre,split") -> Path:
    path = folder / "slides.csv"
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


def damaged(source: Path, path: Path, l0_x: int, l0_y: int) -> Path:
    """A copy of a tiled TIFF with zeros where the level-0 tile with this pixel was."""
    with tifffile.TiffFile(source) as file:
        page = file.pages[0].aspage()
        number = l0_y // page.tilelength * -(-page.imagewidth // page.tilewidth) + l0_x // page.tilewidth
        offset, num_bytes = page.dataoffsets[number], page.databytecounts[number]
    data = bytearray(source.read_bytes())
    data[offset : offset + num_bytes] = bytes(num_bytes)
    path.write_bytes(data)
    return path
