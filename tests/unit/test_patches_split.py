from __future__ import annotations

import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from trainer.config.schema import SplitConfig
from trainer.errors import DataError
from trainer.patches.split import assign_splits
from trainer.slides.dataset import SlideRecord


def record(name: str, patient: str = "", centre: str = "", split: str = "", has_tumour: bool = False) -> SlideRecord:
    return SlideRecord(Path("/d") / name, Path("/d/a.xml") if has_tumour else None, patient, centre, split)


def split(records: list[SlideRecord], seed: int = 1, **config: Any) -> dict[str, str]:
    splits = assign_splits(records, SplitConfig(**config), seed)
    return {str(r.slide): s for r, s in zip(records, splits, strict=True)}


HOSPITAL = [record(f"{i}.svs", f"p{i // 3}", f"c{i // 12}", has_tumour=i % 12 < 4) for i in range(60)]


@pytest.mark.parametrize(("by", "group"), [("patient", "patient"), ("centre", "centre"), ("slide", "slide")])
def test_groups_stay_on_one_side_and_the_share_is_met(by: str, group: str) -> None:
    splits = split(HOSPITAL, by=by, val_fraction=0.2)
    sides = {s: {getattr(r, group) for r in HOSPITAL if splits[str(r.slide)] == s} for s in ("train", "val")}
    assert not sides["train"] & sides["val"]
    num_groups = len(sides["train"]) + len(sides["val"])
    assert len(sides["val"]) == max(1, round(0.2 * num_groups))


def test_split_depends_on_the_seed_and_not_on_order_or_folder() -> None:
    shuffled = random.Random(0).sample(HOSPITAL, len(HOSPITAL))
    assert split(HOSPITAL) == split(shuffled)
    assert split(HOSPITAL) != split(HOSPITAL, seed=2)
    moved = [SlideRecord(Path("/elsewhere") / r.slide.name, r.annotation) for r in HOSPITAL]
    here = [SlideRecord(r.slide, r.annotation) for r in HOSPITAL]
    assert list(split(moved).values()) == list(split(here).values())


def test_slides_without_a_patient_are_their_own_group_even_with_equal_names() -> None:
    records = [SlideRecord(Path(f"/d/{i}/scan.svs"), None) for i in range(10)]
    assert Counter(split(records, val_fraction=0.3).values()) == {"train": 7, "val": 3}


@pytest.mark.parametrize("seed", range(8))
def test_both_sides_get_annotated_groups_where_there_are_two(seed: int) -> None:
    records = [record(f"{i}.svs", has_tumour=i < 2) for i in range(20)]
    splits = split(records, seed, val_fraction=0.2)
    assert sorted(splits[str(r.slide)] for r in records[:2]) == ["train", "val"]
    assert Counter(splits.values()) == {"train": 16, "val": 4}
    only = [record(f"{i}.svs", has_tumour=i < 1) for i in range(6)]
    assert split(only, seed)["/d/0.svs"] == "train"
    all_annotated = [record(f"{i}.svs", has_tumour=True) for i in range(5)]
    assert Counter(split(all_annotated, seed).values()) == {"train": 4, "val": 1}


def test_manifest_splits_hold_for_the_whole_group_and_count_towards_the_share() -> None:
    records = [record(f"{i}.svs", f"p{i // 2}") for i in range(20)]
    records[0] = record("0.svs", "p0", split="test")
    records[2], records[4] = record("2.svs", "p1", split="val"), record("4.svs", "p2", split="val")
    splits = split(records, val_fraction=0.2)
    assert splits["/d/1.svs"] == "test" and splits["/d/3.svs"] == splits["/d/5.svs"] == "val"
    assert Counter(splits.values()) == {"train": 14, "val": 4, "test": 2}


def test_manifest_splits_that_part_a_patient_are_refused() -> None:
    records = [record("a.svs", "p1", split="train"), record("b.svs", "p1", split="val"), record("c.svs")]
    with pytest.raises(DataError, match=r"patient p1 has slides in 'train' and in 'val' \(such as b\.svs\)"):
        split(records)
    assert split(records, by="slide")["/d/b.svs"] == "val"


def test_centres_decide_where_they_are_given_and_others_are_unused() -> None:
    splits = split(HOSPITAL, train_centres=["c0", "c1"], val_centres=["c4"])
    for r in HOSPITAL:
        assert splits[str(r.slide)] == {"c0": "train", "c1": "train", "c4": "val"}.get(r.centre, "unused")
    moved = [record("a.svs", "p", "c0"), record("b.svs", "p", "c1")]
    with pytest.raises(DataError, match="patient p has slides from centres on both sides"):
        split(moved, train_centres=["c0"], val_centres=["c1"])


def test_no_validation_is_drawn_when_none_is_wanted() -> None:
    assert set(split(HOSPITAL, val_fraction=0).values()) == {"train"}
    assert Counter(split(HOSPITAL[:9], val_fraction=0.001).values())["val"] == 3  # at least one patient


def test_an_empty_side_is_refused_with_what_to_do() -> None:
    with pytest.raises(DataError, match="no slide is left to validate on") as error:
        split([record("a.svs", "p1"), record("b.svs", "p1")])
    assert "split.by=slide" in error.value.fix and "split.val_fraction=0" in error.value.fix
    with pytest.raises(DataError, match="no slide is left to train on"):
        split([record("a.svs", split="test")])
    with pytest.raises(DataError, match="no slide is left to validate on") as error:
        split(HOSPITAL, train_centres=["c0"], val_centres=["nowhere"])
    assert "c0, c1, c2, c3, c4" in error.value.fix
