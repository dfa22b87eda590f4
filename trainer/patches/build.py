"""Build the patch index: every rank takes its share of the slides, then all assemble the same index.

No rank stops alone: what is wrong with a slide travels with the results, and after the gather all raise the same
error.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from trainer.config.schema import Config
from trainer.errors import DataError, SlideError, WidefieldError
from trainer.patches.grid import grid_points
from trainer.patches.index import PatchIndex, fingerprint_of
from trainer.patches.split import UNUSED, assign_splits
from trainer.slides.dataset import SlideRecord, load_dataset
from trainer.slides.geometry import l0_length
from trainer.slides.labels import open_labels
from trainer.slides.slide import Slide, open_slide
from trainer.slides.tissue import find_tissue

_SHOWN_ERRORS = 3


@dataclass(frozen=True)
class SlidePatches:
    """The patches of one slide, sizes ascending, row by row.

    Args:
      size: [n] int32; l0_points: [n, 2] int64 (x, y); tissue_fraction: [n] float32; label_fractions: [n, C] float32.
      num_dropped: patch size -> positions left out for too little tissue.
    """

    size: np.ndarray
    l0_points: np.ndarray
    tissue_fraction: np.ndarray
    label_fractions: np.ndarray
    num_dropped: dict[int, int]


def index_slide(record: SlideRecord, split: str, config: Config) -> SlidePatches:
    """All patches of one slide. Training patches may overlap; those of validation and test never do.

    Raises:
      SlideError: the slide cannot be read. AnnotationError: its annotation cannot be used.
      DataError: the slide is smaller than a patch.
    """
    slide = open_slide(record.slide)
    labels = open_labels(record, slide, config.data)
    downsample = slide.downsample(config.index.level)
    l0_sizes = {size: l0_length(size, downsample) for size in config.patch_sizes}
    _check_patches_fit(slide, l0_sizes)
    needs_tissue = config.index.min_tissue_fraction > 0
    tissue = find_tissue(slide, min(l0_sizes.values())) if needs_tissue else None
    overlap = config.index.overlap if split == "train" else 0.0
    parts, num_dropped = [], {}
    for size, l0_size in l0_sizes.items():
        points = grid_points(slide.size, l0_size, max(1, round(l0_size * (1 - overlap))))
        share = tissue.fraction(points, l0_size) if tissue else np.ones(len(points), np.float32)
        is_kept = share >= config.index.min_tissue_fraction
        points = points[is_kept]
        sizes = np.full(len(points), size, np.int32)
        parts.append((sizes, points, share[is_kept], labels.fractions(points, l0_size)))
        num_dropped[size] = int(np.count_nonzero(~is_kept))
    sizes, points, shares, fractions = (np.concatenate(column) for column in zip(*parts, strict=True))
    return SlidePatches(sizes, points, shares, fractions, num_dropped)


def _check_patches_fit(slide: Slide, l0_sizes: dict[int, int]) -> None:
    for size, l0_size in l0_sizes.items():
        if l0_size > min(slide.size):
            scale = "" if l0_size == size else f" ({l0_size} px at level 0)"
            raise DataError(
                f"a patch of {size} px{scale} is larger than the slide, which has {slide.size[0]} x {slide.size[1]} px",
                where=str(slide.path),
                fix="take the slide out of the data set, or the size out of curriculum[i].patch_size",
            )


@dataclass(frozen=True)
class _Outcome:
    """What one rank found for one slide: its patches or what is wrong with it."""

    number: int
    found: SlidePatches | WidefieldError


def build_index(
    config: Config,
    rank: int,
    world_size: int,
    gather: Callable[[Any], list[Any]],
    progress: Callable[[int, int], None] | None = None,
) -> PatchIndex:
    """The patch index of a data set, identical on every rank and for any number of ranks.

    Args:
      gather: collective that gives every rank the list of all ranks' objects, by rank.
      progress: called with (done, total) for the slides of this rank.
    Raises:
      SlideError: more slides cannot be read than `index.max_unreadable_fraction` allows; lists them.
      DataError, AnnotationError: a slide, annotation or split that cannot be used; the first few and their number.
      All of these on every rank.
    """
    dataset = load_dataset(config.data)
    splits = assign_splits(dataset, config.split, config.seed)
    records = [replace(r, split=s) for r, s in zip(dataset, splits, strict=True)]
    mine = [i for i, record in enumerate(records) if record.split != UNUSED][rank::world_size]
    outcomes = []
    for done, number in enumerate(mine, 1):
        outcomes.append(_Outcome(number, _try_index(records[number], config)))
        if progress:
            progress(done, len(mine))
    everything = sorted((o for part in gather(outcomes) for o in part), key=lambda o: o.number)
    errors = [o.found for o in everything if isinstance(o.found, WidefieldError)]
    unreadable = _raise_or_list(errors, len(everything), config.index.max_unreadable_fraction)
    parts = {o.number: o.found for o in everything if isinstance(o.found, SlidePatches)}
    index = _assemble(records, parts, config, fingerprint_of(config, dataset), unreadable)
    _check_not_empty(index, parts, config)
    return index


def _try_index(record: SlideRecord, config: Config) -> SlidePatches | WidefieldError:
    try:
        return index_slide(record, record.split, config)
    except WidefieldError as error:
        return error


def _raise_or_list(errors: list[WidefieldError], num_slides: int, allowed: float) -> tuple[str, ...]:
    """One line for each slide that may be passed over; raises where there are too many or anything else is wrong."""
    others = [e for e in errors if not isinstance(e, SlideError)]
    if len(others) == 1:
        raise others[0]
    if others:
        shown = "\n".join(f"  {e}" for e in others[:_SHOWN_ERRORS])
        more = f"\n  and {len(others) - _SHOWN_ERRORS} more" if len(others) > _SHOWN_ERRORS else ""
        raise type(others[0])(f"{len(others)} slides cannot be used:\n{shown}{more}", where="patch index")
    unreadable = tuple(f"{e.where}: {e.what}" for e in errors)
    if len(unreadable) > allowed * num_slides:
        if len(unreadable) == 1:
            raise errors[0]
        lines = "\n".join(f"  {line}" for line in unreadable)
        raise SlideError(
            f"{len(unreadable)} of {num_slides} slides cannot be read:\n{lines}",
            where="patch index",
            fix=f"mend or remove them, or raise index.max_unreadable_fraction (now {allowed:g})",
        )
    return unreadable


def _assemble(
    records: list[SlideRecord],
    parts: dict[int, SlidePatches],
    config: Config,
    fingerprint: str,
    unreadable: tuple[str, ...],
) -> PatchIndex:
    found = list(parts.values())
    points = _joined([p.l0_points for p in found], np.zeros((0, 2), np.int64))
    num_classes = len(config.data.classes)
    return PatchIndex(
        slides=tuple(records),
        slide=np.repeat(np.array(list(parts), np.int32), [len(p.size) for p in found]),
        x=np.ascontiguousarray(points[:, 0]),
        y=np.ascontiguousarray(points[:, 1]),
        level=np.full(len(points), config.index.level, np.int32),
        size=_joined([p.size for p in found], np.zeros(0, np.int32)),
        tissue_fraction=_joined([p.tissue_fraction for p in found], np.zeros(0, np.float32)),
        label_fractions=_joined([p.label_fractions for p in found], np.zeros((0, num_classes), np.float32)),
        class_names=config.data.class_names,
        patch_sizes=config.patch_sizes,
        fingerprint=fingerprint,
        unreadable=unreadable,
    )


def _joined(parts: list[np.ndarray], empty: np.ndarray) -> np.ndarray:
    return np.concatenate([empty, *parts])


def _check_not_empty(index: PatchIndex, parts: dict[int, SlidePatches], config: Config) -> None:
    """Every size needs training patches, and validation patches where there are slides to validate on."""
    for split, word in (("train", "training"), ("val", "validation")):
        numbers = [n for n, slide in enumerate(index.slides) if slide.split == split]
        for size in config.patch_sizes if numbers else ():
            if len(index.select(size, split)) == 0:
                num_dropped = sum(parts[n].num_dropped[size] for n in numbers if n in parts)
                raise DataError(
                    f"there are no {word} patches of {size} px: {num_dropped} positions on {len(numbers)} slide(s) "
                    f"have less than {config.index.min_tissue_fraction:.0%} tissue",
                    where="patch index",
                    fix="lower index.min_tissue_fraction (0 keeps every position), or take that size out of curriculum",
                )
