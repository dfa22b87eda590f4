"""Folds: every group validates once, whole, in a fold that holds its share of what matters."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.config.schema import SplitConfig
from trainer.errors import DataError
from trainer.patches.split import assign_splits
from trainer.slides.dataset import SlideRecord


def slide(number: int, patient: str = "", centre: str = "", split: str = "", has_tumour: bool = False) -> SlideRecord:
    return SlideRecord(Path(f"/d/{number}.svs"), Path("/d/a.xml") if has_tumour else None, patient, centre, split)


def folds_of(records: list[SlideRecord], folds: int, seed: int = 1, by: str = "patient") -> list[dict[Path, str]]:
    """For each fold, the side of every slide."""
    configs = [SplitConfig.model_validate({"by": by, "folds": folds, "fold": k}) for k in range(1, folds + 1)]
    return [dict(zip((r.slide for r in records), assign_splits(records, c, seed), strict=True)) for c in configs]


@st.composite
def cohorts(draw: st.DrawFn) -> list[SlideRecord]:
    """Patients of one to three slides, each from one centre, some with an annotation, some held out for testing."""
    records: list[SlideRecord] = []
    for patient in range(draw(st.integers(7, 24))):
        centre, split = draw(st.sampled_from(["", "a", "b"])), draw(st.sampled_from(["", "", "", "train", "val"]))
        split = "test" if patient >= 5 and draw(st.integers(0, 4)) == 0 else split
        for _ in range(draw(st.integers(1, 3))):
            records.append(slide(len(records), f"p{patient}", centre, split, draw(st.booleans())))
    return records


@given(cohorts(), st.integers(2, 5), st.integers(0, 99))
def test_every_patient_validates_exactly_once_and_is_never_on_both_sides(
    records: list[SlideRecord], folds: int, seed: int
) -> None:
    sides = folds_of(records, folds, seed)
    patients = {r.patient: [q.slide for q in records if q.patient == r.patient] for r in records}
    for slides in patients.values():
        seen = [{fold[s] for s in slides} for fold in sides]
        assert all(len(side) == 1 for side in seen)
        counts = Counter(side.pop() for side in seen)
        assert counts in ({"test": folds}, {"val": 1, "train": folds - 1})
    held_out = {r.slide for r in records if r.split == "test"}
    assert all({s for s, side in fold.items() if side == "test"} == held_out for fold in sides)


@given(cohorts(), st.integers(2, 5), st.integers(0, 99))
def test_folds_are_balanced_to_one_in_all_by_annotation_and_within_each_centre(
    records: list[SlideRecord], folds: int, seed: int
) -> None:
    sides = folds_of(records, folds, seed)
    patients = {r.patient: [q for q in records if q.patient == r.patient] for r in records if r.split != "test"}
    annotated = {p for p, slides in patients.items() if any(s.annotation for s in slides)}
    strata = [set(patients), annotated, set(patients) - annotated]
    for centre in ("", "a", "b"):
        here = {p for p, slides in patients.items() if slides[0].centre == centre}
        strata += [here & annotated, here - annotated]
    for stratum in strata:
        counts = [sum(fold[patients[p][0].slide] == "val" for p in stratum) for fold in sides]
        assert max(counts) - min(counts) <= 1


@given(cohorts(), st.randoms(use_true_random=False))
def test_folds_do_not_depend_on_the_order_of_slides_or_on_the_folder(
    records: list[SlideRecord], shuffle: random.Random
) -> None:
    before = folds_of(records, 4)
    others = [SlideRecord(Path("/moved") / r.slide.name, r.annotation, r.patient, r.centre, r.split) for r in records]
    shuffle.shuffle(others)
    after = [{s.name: side for s, side in fold.items()} for fold in folds_of(others, 4)]
    assert after == [{s.name: side for s, side in fold.items()} for fold in before]


def test_folds_depend_on_the_seed_also_where_centres_are_the_groups() -> None:
    records = [slide(i, centre=f"c{i // 2}") for i in range(40)]
    for by in ("patient", "centre"):
        assert folds_of(records, 4, by=by) != folds_of(records, 4, seed=2, by=by)
    by_centre = folds_of(records, 4, by="centre")[0]
    assert all(by_centre[records[i].slide] == by_centre[records[i + 1].slide] for i in range(0, 40, 2))


def test_more_folds_than_groups_are_refused_with_what_would_do() -> None:
    records = [slide(i, f"p{i // 4}", split="test" if i < 4 else "") for i in range(12)]
    with pytest.raises(DataError, match="2 groups for 3 folds") as error:
        folds_of(records, 3)
    assert "split.folds=2" in error.value.fix and "split.by=slide" in error.value.fix
    assert len(folds_of(records, 8, by="slide")) == 8


def test_a_manifest_that_parts_a_patient_is_refused_here_too() -> None:
    records = [slide(0, "p", split="test"), slide(1, "p", split="val"), slide(2), slide(3)]
    with pytest.raises(DataError, match="patient p has slides in 'test' and in 'val'"):
        folds_of(records, 2)
