"""What about an index a person should look at before training. Pure functions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable

import numpy as np

from trainer.config.schema import Config
from trainer.inspect.choose import was_indexed
from trainer.inspect.counts import passed_over, plural
from trainer.patches.index import PatchIndex
from trainer.patches.sample import is_positive
from trainer.slides.dataset import SPLITS

_NAMED = 5
_MPP_SPREAD = 1.1
"""Largest ratio of resolutions that is taken for one magnification (20x is 0.46 to 0.5 um/px)."""


def remarks(index: PatchIndex, config: Config) -> list[str]:
    """What deserves a look before training, in words; empty where nothing does."""
    return [text for check in _CHECKS for text in check(index, config)]


def _unread(index: PatchIndex, config: Config) -> Iterable[str]:
    return (f"Cannot be read: {line}" for line in index.unreadable)


def _unused(index: PatchIndex, config: Config) -> Iterable[str]:
    return _of_slides(index, "on no side of the split, so not used", lambda i: index.slides[i].split not in SPLITS)


def _empty(index: PatchIndex, config: Config) -> Iterable[str]:
    has_patches = set(np.unique(index.slide).tolist())
    return _of_slides(index, "without a single patch", lambda i: was_indexed(index, i) and i not in has_patches)


def _annotated_but_negative(index: PatchIndex, config: Config) -> Iterable[str]:
    positive = is_positive(index.label_fractions, config.sampling.min_tumour_fraction)
    has_positive = set(np.unique(index.slide[positive]).tolist())

    def is_odd(i: int) -> bool:
        return was_indexed(index, i) and index.slides[i].annotation is not None and i not in has_positive

    return _of_slides(index, "with an annotation but no positive patch", is_odd)


def _annotation_passed_over(index: PatchIndex, config: Config) -> Iterable[str]:
    total = Counter[str]()
    for i in range(len(index.slides)):
        total.update(passed_over(index, i))
    words = "; ".join(f"{num:,} x {reason}" for reason, num in total.most_common())
    return _of_slides(
        index, f"with something drawn that is passed over ({words})", lambda i: bool(passed_over(index, i))
    )


def _missing_classes(index: PatchIndex, config: Config) -> Iterable[str]:
    for split, word in (("train", "training"), ("val", "validation")):
        rows = np.concatenate([index.select(size, split) for size in index.patch_sizes])
        has = index.label_fractions[rows].max(axis=0, initial=0) > 0
        if len(rows) == 0:
            yield f"There are no {word} patches."
        elif not has.all():
            yield f"In no {word} patch: {', '.join(n for n, h in zip(index.class_names, has, strict=True) if not h)}"


def _resolutions(index: PatchIndex, config: Config) -> Iterable[str]:
    known = [i.mpp * i.downsample for i in index.infos if i.mpp and i.size != (0, 0)]
    if known and max(known) > _MPP_SPREAD * min(known):
        yield (
            f"Patches are {min(known):.3g} to {max(known):.3g} um per pixel, depending on the slide; "
            "index.resolution={mpp: ...} makes them alike."
        )
    if known:
        yield from _of_slides(
            index, "without a known resolution", lambda i: was_indexed(index, i) and not index.infos[i].mpp
        )


_CHECKS: tuple[Callable[[PatchIndex, Config], Iterable[str]], ...] = (
    _unread, _missing_classes, _empty, _annotated_but_negative, _annotation_passed_over, _resolutions, _unused,
)  # fmt: skip


def _of_slides(index: PatchIndex, what: str, is_meant: Callable[[int], bool]) -> Iterable[str]:
    names = [r.slide.name for i, r in enumerate(index.slides) if is_meant(i)]
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    if names:
        yield f"{plural(len(names), 'slide')} {what}: {', '.join(names[:_NAMED])}{more}"
