"""The settings that decide where patches lie and what their labels are, in words."""

from __future__ import annotations

from collections.abc import Sequence

from trainer.config.schema import Config, DataConfig, IndexConfig, SplitConfig
from trainer.inspect.markup import Html, facts, tag


def settings(config: Config) -> Html:
    """A <section>."""
    index = config.index
    place = [
        ("patch sizes", ", ".join(f"{s} px" for s in config.patch_sizes)),
        ("resolution", _resolution(index)),
        ("positions", _positions(index)),
        *_tissue(index),
        ("split", _split(config.split)),
        ("positive from", f"{config.sampling.min_tumour_fraction * 100:.3g}% of the pixels"),
        ("stain", config.stain.normalise),
        ("seed", config.seed),
    ]
    labels = facts(_labels(config.data))
    return tag("section", tag("h2", "Settings"), tag("h3", "Patches"), facts(place), tag("h3", "Labels"), labels)


def _resolution(index: IndexConfig) -> str:
    wanted = index.resolution
    return f"level {wanted.level}" if wanted.mpp is None else f"{wanted.mpp:g} um/px"


def _positions(index: IndexConfig) -> str:
    if index.positions == "random":
        return f"random, {index.random_per_class} per slide, size and class in training; validation on a grid"
    cap = f", at most {index.max_per_slide} positive and as many negative per slide" if index.max_per_slide else ""
    return f"grid, {index.overlap:.0%} overlap in training{cap}"


def _tissue(index: IndexConfig) -> list[tuple[str, str]]:
    if index.min_tissue_fraction == 0:
        return [("least tissue", "0% (no tissue mask)")]
    saturation = index.tissue.saturation
    threshold = "Otsu's of each slide" if saturation is None else f"{saturation:g}"
    pen = "left out" if index.tissue.exclude_pen else "counted as tissue"
    return [("least tissue", f"{index.min_tissue_fraction:.0%}"), ("saturation from", threshold), ("pen marks", pen)]


def _split(split: SplitConfig) -> str:
    if split.val_centres:
        return f"centres {', '.join(split.val_centres)} validate"
    if split.folds:
        return f"by {split.by}, fold {split.fold} of {split.folds} validates"
    return f"by {split.by}, {split.val_fraction:.0%} validate"


def _labels(data: DataConfig) -> list[tuple[str, str]]:
    first, *others = data.classes
    return [
        (first.name, _sources(first.groups, first.mask_values) or "all that is not annotated"),
        *((c.name, _sources(c.groups, c.mask_values)) for c in others),
        ("holes", _sources(data.exclusion_groups)),
        ("ignored", _sources(data.ignore_groups, data.ignore_mask_values)),
        ("passed over", _sources(data.skip_groups)),
    ]


def _sources(groups: Sequence[str], values: Sequence[int | str] = ()) -> str:
    parts = [("groups", groups), ("mask values", values)]
    return "; ".join(f"{word} {', '.join(map(str, items))}" for word, items in parts if items)
