"""The patches of one slide, and the file that keeps them so that indexing can go on after a stop."""

from __future__ import annotations

import json
import os
import socket
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np

from trainer.config.schema import Config, IndexConfig
from trainer.errors import DataError
from trainer.patches.grid import grid_points
from trainer.patches.index import SlideInfo, asdict_json, digest, slide_settings
from trainer.patches.sample import capped, first_of_each_class, random_points, slide_rng
from trainer.slides.dataset import SlideRecord
from trainer.slides.geometry import l0_length
from trainer.slides.identity import slide_hash
from trainer.slides.labels import Labels, open_labels
from trainer.slides.resolution import downsample_at, slide_mpp
from trainer.slides.slide import Slide, open_slide
from trainer.slides.stain import Stains, estimate_stains
from trainer.slides.tissue import TissueMask, find_tissue

_STAIN_WINDOWS, _STAIN_WINDOW_PX, _STAIN_PIXELS_PER_WINDOW = 64, 256, 4096
"""A slide's stains are estimated from this many windows of tissue (a quarter of a million pixels)."""


_TISSUE = "mask_"
"""Prefix of the tissue mask's arrays in a slide's file."""


@dataclass(frozen=True)
class SlidePatches:
    """The patches of one slide, sizes ascending, row by row.

    Args:
      size: [n] int32; l0_points: [n, 2] int32 (x, y); tissue_fraction: [n] float32; label_fractions: [n, C] float32.
      info: what else indexing found out.
      tissue: the tissue mask; None where the settings ask for none.
    """

    size: np.ndarray
    l0_points: np.ndarray
    tissue_fraction: np.ndarray
    label_fractions: np.ndarray
    info: SlideInfo
    tissue: TissueMask | None


def index_slide(record: SlideRecord, config: Config) -> SlidePatches:
    """All patches of one slide. Those of validation and test lie on a grid without overlap.

    Raises:
      SlideError: the slide cannot be read. AnnotationError: its annotation cannot be used.
      DataError: the slide is smaller than a patch.
    """
    slide = open_slide(record.slide)
    labels = open_labels(record, slide, config.data)
    mpp = slide_mpp(slide, record.mpp, config.data.mpp)
    downsample = downsample_at(slide, config.index.resolution, mpp)
    l0_sizes = {size: l0_length(size, downsample) for size in config.patch_sizes}
    _check_patches_fit(slide, l0_sizes)
    needs_tissue = config.index.min_tissue_fraction > 0
    tissue = find_tissue(slide, min(l0_sizes.values()), config.index.tissue) if needs_tissue else None
    parts, num_dropped = [], {}
    for size, l0_size in l0_sizes.items():
        *part, num_dropped[str(size)] = _patches(record, slide, labels, tissue, config, size, l0_size)
        parts.append((np.full(len(part[0]), size, np.int32), *part))
    sizes, points, shares, fractions = (np.concatenate(column) for column in zip(*parts, strict=True))
    info = SlideInfo(
        size=slide.size,
        downsample=downsample,
        mpp=mpp,
        slide_hash=slide_hash(record.slide),
        annotation_hash=slide_hash(record.annotation) if record.annotation else "",
        stains=_stains(slide, points, downsample, config),
        annotation=asdict(labels.report),
        num_dropped=num_dropped,
    )
    return SlidePatches(sizes, points, shares, fractions, info, tissue)


def _patches(
    record: SlideRecord,
    slide: Slide,
    labels: Labels,
    tissue: TissueMask | None,
    config: Config,
    size: int,
    l0_size: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """(points, tissue shares, class shares) of one size, row by row, and how many had too little tissue."""
    settings, positive_from = config.index, config.sampling.min_tumour_fraction
    trains, rng = record.split == "train", slide_rng(config.seed, record.slide.name, size)
    is_random = trains and settings.positions == "random"
    overlap = settings.overlap if trains else 0.0
    stride = max(1, round(l0_size * (1 - overlap)))
    points = random_points(slide.size, l0_size, rng) if is_random else grid_points(slide.size, l0_size, stride)
    shares = tissue.fraction(points, l0_size) if tissue else np.ones(len(points), np.float32)
    has_tissue = shares >= settings.min_tissue_fraction
    points, shares = points[has_tissue], shares[has_tissue]
    fractions = labels.fractions(points, l0_size)
    kept = np.ones(len(points), bool)
    if is_random:
        kept = first_of_each_class(fractions, settings.random_per_class, positive_from)
    elif trains and settings.max_per_slide:
        kept = capped(fractions, settings.max_per_slide, positive_from, rng)
    order = np.flatnonzero(kept)
    order = order[np.lexsort(points[order].T)]  # by y, then x
    return points[order].astype(np.int32), shares[order], fractions[order], int(np.count_nonzero(~has_tissue))


def _check_patches_fit(slide: Slide, l0_sizes: dict[int, int]) -> None:
    for size, l0_size in l0_sizes.items():
        if l0_size > min(slide.size):
            scale = "" if l0_size == size else f" ({l0_size} px at level 0)"
            raise DataError(
                f"a patch of {size} px{scale} is larger than the slide, which has {slide.size[0]} x {slide.size[1]} px",
                where=str(slide.path),
                fix="take the slide out of the data set, or the size out of curriculum[i].patch_size",
            )


def slide_stains(
    slide: Slide, l0_points: np.ndarray, downsample: float, smallest_patch: int, seed: int
) -> Stains | None:
    """The slide's stains from pixels of some of its patches; None where too few pixels are stained.

    Args:
      l0_points: [N, 2] (x, y) top-left corners of patches, level-0 pixels.
      downsample: level-0 pixels per patch pixel.
      smallest_patch: its side in patch pixels.
    Raises:
      SlideError: the slide cannot be read.
    """
    if len(l0_points) == 0:
        return None
    rng = slide_rng(seed, slide.path.name, 0)
    chosen = rng.choice(len(l0_points), min(_STAIN_WINDOWS, len(l0_points)), replace=False)
    window = min(_STAIN_WINDOW_PX, smallest_patch)
    pixels = []
    for x, y in l0_points[np.sort(chosen)]:
        found = slide.resample(int(x), int(y), window, downsample).reshape(-1, 3)
        pixels.append(found[rng.choice(len(found), min(_STAIN_PIXELS_PER_WINDOW, len(found)), replace=False)])
    return estimate_stains(np.concatenate(pixels))


def _stains(slide: Slide, l0_points: np.ndarray, downsample: float, config: Config) -> str | None:
    """As the index keeps them; None also where not asked for."""
    if config.stain.normalise == "none":
        return None
    stains = slide_stains(slide, l0_points, downsample, config.patch_sizes[0], config.seed)
    return stains.to_json() if stains else None


def part_path(folder: Path, record: SlideRecord, config: Config) -> Path:
    """Where the patches of a slide are kept: the name says what they were made from.

    Equal contents of slide and annotation, equal settings and, where it matters to positions, equal side (training or
    not): equal name.
    """
    made_from = slide_settings(config) | {
        "slide": slide_hash(record.slide),
        "annotation": slide_hash(record.annotation) if record.annotation else "",
        "mpp": record.mpp,
        "trains": record.split == "train" or not _sides_differ(config.index),
    }
    return folder / f"{record.slide.stem}-{digest(made_from)[:20]}.npz"


def _sides_differ(settings: IndexConfig) -> bool:
    """Whether a slide has other patches in training than in validation."""
    return settings.positions == "random" or settings.overlap > 0 or settings.max_per_slide is not None


def write_part(part: SlidePatches, path: Path) -> None:
    """Write the patches of one slide; equal patches give equal content. A reader never sees half a file."""
    arrays = {f.name: getattr(part, f.name) for f in fields(part) if f.name not in ("info", "tissue")}
    arrays |= {_TISSUE + k: v for k, v in part.tissue.to_arrays().items()} if part.tissue else {}
    temporary = path.with_name(f".{path.name}.{socket.gethostname()}-{os.getpid()}.part")  # two may do one slide
    with temporary.open("wb") as file:
        np.savez_compressed(file, info=np.array(json.dumps(asdict_json(part.info))), **arrays)
    temporary.replace(path)


def read_part(path: Path, *, tissue: bool = True) -> SlidePatches:
    """Read what `write_part` wrote; without the tissue mask (which is most of it in memory) where not wanted."""
    with np.load(path, allow_pickle=False) as file:
        info = json.loads(str(file["info"]))
        columns = {f.name: file[f.name] for f in fields(SlidePatches) if f.name in file.files and f.name != "info"}
        mask = {n.removeprefix(_TISSUE): file[n] for n in file.files if n.startswith(_TISSUE)} if tissue else {}
    return SlidePatches(
        **columns,
        info=SlideInfo(**{**info, "size": tuple(info["size"])}),
        tissue=TissueMask.from_arrays(mask) if mask else None,
    )
