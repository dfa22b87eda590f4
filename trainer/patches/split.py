"""Which slides train and which validate: decided from names and a seed alone, so every rank decides alike."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from trainer.config.schema import SplitConfig
from trainer.errors import DataError
from trainer.patches.folds import Group, deal_folds, name_hash
from trainer.slides.dataset import SlideRecord

UNUSED = "unused"
"""Split of slides whose centre is in neither list."""


def assign_splits(records: Sequence[SlideRecord], config: SplitConfig, seed: int) -> list[str]:
    """'train', 'val', 'test' or 'unused' for each record.

    Slides of one patient (slide, centre: `config.by`) are a group and stay together; a slide without a patient is its
    own group. A split given in the manifest holds for its whole group, and groups given as 'val' count towards
    `val_fraction`. The others are drawn by a hash of (seed, group), separately for groups with and without an
    annotation, so that both sides get of both where there are enough. The order of records does not matter, nor
    does the folder the data lies in as long as file names differ.

    With `folds` each group validates in exactly one fold, see `deal_folds`. 'train' and 'val' in the manifest are one
    answer to the question that folds answer anew, so these groups take part; 'test' is kept out of all folds.

    Raises:
      DataError: explicit splits that part a group; or a side that would be empty.
    """
    keys = [_group(record, config.by) for record in records]
    splits = _explicit_splits(records, keys, config.by)
    if config.folds:
        splits = _by_fold(records, keys, splits, config, seed)
    elif config.train_centres:
        splits = _by_centre(records, keys, splits, config)
    else:
        splits |= _drawn(records, keys, splits, config.val_fraction, seed)
    assigned = [splits[key] for key in keys]
    _check_sides(assigned, records, config)
    return assigned


def _group(record: SlideRecord, by: str) -> Group:
    name = {"patient": record.patient, "centre": record.centre, "slide": ""}[by]
    return (name, "") if name else (record.slide.name, str(record.slide))


def _explicit_splits(records: Sequence[SlideRecord], keys: Sequence[Group], by: str) -> dict[Group, str]:
    splits: dict[Group, str] = {}
    for record, key in zip(records, keys, strict=True):
        if record.split and splits.setdefault(key, record.split) != record.split:
            raise DataError(
                f"{by} {key[0]} has slides in '{splits[key]}' and in '{record.split}' (such as {record.slide.name})",
                where="the split column of the manifest",
                fix=f"give all slides of a {by} the same split, or set split.by=slide",
            )
    return splits


def _by_fold(
    records: Sequence[SlideRecord],
    keys: Sequence[Group],
    explicit: dict[Group, str],
    config: SplitConfig,
    seed: int,
) -> dict[Group, str]:
    """'val' for the groups of the fold, 'test' where the manifest says so, 'train' for all others."""
    splits = {key: split for key, split in explicit.items() if split == "test"}
    groups: dict[Group, list[SlideRecord]] = defaultdict(list)
    for record, key in zip(records, keys, strict=True):
        if key not in splits:
            groups[key].append(record)
    assert config.folds
    dealt = deal_folds(groups, config.folds, seed)
    return splits | {key: "val" if fold == config.fold else "train" for key, fold in dealt.items()}


def _by_centre(
    records: Sequence[SlideRecord],
    keys: Sequence[Group],
    explicit: dict[Group, str],
    config: SplitConfig,
) -> dict[Group, str]:
    sides = dict.fromkeys(config.train_centres, "train") | dict.fromkeys(config.val_centres, "val")
    splits = dict(explicit)
    for record, key in zip(records, keys, strict=True):
        side = explicit.get(key) or sides.get(record.centre, UNUSED)
        if splits.setdefault(key, side) != side:
            raise DataError(
                f"{config.by} {key[0]} has slides from centres on both sides ('{splits[key]}' and '{side}')",
                where="split.train_centres, split.val_centres",
                fix="give that patient's slides a split in the manifest, or set split.by=slide",
            )
    return splits


def _drawn(
    records: Sequence[SlideRecord],
    keys: Sequence[Group],
    explicit: dict[Group, str],
    val_fraction: float,
    seed: int,
) -> dict[Group, str]:
    """'train' or 'val' for every group without an explicit split."""
    is_annotated: dict[Group, bool] = defaultdict(bool)
    for record, key in zip(records, keys, strict=True):
        is_annotated[key] |= record.annotation is not None
    free = sorted((k for k in is_annotated if k not in explicit), key=lambda k: (name_hash(seed, k[0]), k))
    annotated, plain = [k for k in free if is_annotated[k]], [k for k in free if not is_annotated[k]]
    given = list(explicit.values())
    num_wanted = _num_val(len(free) + given.count("train") + given.count("val"), val_fraction) - given.count("val")
    num_val = max(0, min(num_wanted, len(free) - (0 if "train" in given else 1)))
    num_annotated = _num_annotated_val(len(annotated), len(plain), num_val)
    val = {*annotated[:num_annotated], *plain[: num_val - num_annotated]}
    return {key: "val" if key in val else "train" for key in free}


def _num_val(num_groups: int, val_fraction: float) -> int:
    return max(1, round(num_groups * val_fraction)) if val_fraction > 0 else 0


def _num_annotated_val(num_annotated: int, num_plain: int, num_val: int) -> int:
    """Annotated groups among those that validate: their share of all, but one on each side where there are two."""
    if num_val <= 0 or num_annotated == 0:
        return 0
    share = round(num_val * num_annotated / (num_annotated + num_plain))
    share = min(max(share, 1), num_annotated - 1)  # 0 of 1: the only one must be learnt from
    return max(share, num_val - num_plain)


def _check_sides(assigned: Sequence[str], records: Sequence[SlideRecord], config: SplitConfig) -> None:
    if config.train_centres:
        centres = ", ".join(sorted({r.centre or "(unknown)" for r in records}))
        fix = f"the data has the centres {centres}"
        where = "split.train_centres, split.val_centres"
    else:
        fix = "give some slides another split in the manifest, add slides, or set split.by=slide"
        where = f"split of {len(records)} slides by {config.by}"
    if "train" not in assigned:
        raise DataError("no slide is left to train on", where=where, fix=fix)
    if "val" not in assigned and (config.train_centres or config.val_fraction > 0):
        keep = "" if config.train_centres else ", or split.val_fraction=0 to train without validation"
        raise DataError("no slide is left to validate on", where=where, fix=fix + keep)
