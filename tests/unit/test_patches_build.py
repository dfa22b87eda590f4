from __future__ import annotations

import pickle
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from small_slides import asap, manifest, pyramid, rgb, run_config, square, tissue_slide

from trainer.config import Config
from trainer.errors import AnnotationError, DataError, SlideError
from trainer.patches.build import build_index, do_jobs, jobs_of, parts_folder
from trainer.patches.index import PatchIndex, fingerprint, write_index
from trainer.slides.slide import open_slide
from trainer.stores import PatchStore
from trainer.stores.slide_store import SlideStore


def on_ranks(world_size: int, job: Callable[[int, Callable[[Any], list[Any]]], Any]) -> list[Any]:
    """Run a job on simulated ranks with a real gather: what it passes is pickled; results or exceptions come back."""
    barrier, slots = threading.Barrier(world_size, timeout=20), [b""] * world_size

    def rank(number: int) -> Any:
        def gather(value: Any) -> list[Any]:
            slots[number] = pickle.dumps(value)
            barrier.wait()
            values = [pickle.loads(s) for s in slots]
            barrier.wait()  # nobody overwrites a slot that another still reads
            return values

        try:
            return job(number, gather)
        except Exception as error:
            return error

    with ThreadPoolExecutor(world_size) as pool:
        return list(pool.map(rank, range(world_size)))


def path_of(config: Config) -> Path:
    return config.output.parent / "index.parquet"


def build_on(config: Config, world_size: int, rank: int, gather: Callable[[Any], list[Any]]) -> PatchIndex:
    return build_index(config, path_of(config), rank, world_size, gather)


def build(config: Config) -> PatchIndex:
    return build_index(config, path_of(config))


@pytest.fixture
def cohort(tmp_path: Path) -> Path:
    """Five slides of 256 x 192: tissue in all but the outer columns, tumour in a square."""
    rows = []
    for n in range(5):
        tissue_slide(tmp_path / f"{n}.png", 256, 192, 32, 224)
        asap(tmp_path / f"{n}.xml", ("_0", square(64, 64, 64)))
        rows.append(f"{n}.png,{n}.xml,p{n},,{'test' if n == 4 else ''}")
    manifest(tmp_path, *rows)
    return tmp_path


def test_index_is_the_same_to_the_byte_on_any_number_of_ranks(cohort: Path) -> None:
    config = run_config(cohort)
    files = []
    for world_size in (1, 2, 3, 7):
        shutil.rmtree(parts_folder(config, path_of(config)), ignore_errors=True)
        indices = on_ranks(world_size, partial(build_on, config, world_size))
        for rank, index in enumerate(indices):
            write_index(index, cohort / f"{world_size}-{rank}")
            files.append((cohort / f"{world_size}-{rank}").read_bytes())
    assert len(set(files)) == 1
    assert indices[0].fingerprint == fingerprint(config)


def test_positions_tissue_and_label_shares_are_right(cohort: Path) -> None:
    index = build(run_config(cohort, index={"min_tissue_fraction": 0.5}))
    assert [s.split for s in index.slides].count("val") == 1 and index.slides[4].split == "test"
    rows = np.flatnonzero((index.slide == 0) & (index.size == 64))
    points = [(int(index.x[r]), int(index.y[r])) for r in rows]
    assert points == [(x, y) for y in (0, 64, 128) for x in (0, 64, 128, 192)]
    at = dict(zip(points, rows, strict=True))
    np.testing.assert_allclose(index.tissue_fraction[[at[0, 0], at[64, 0], at[192, 128]]], [0.5, 1, 0.5], atol=1e-6)
    np.testing.assert_allclose(index.label_fractions[at[64, 64]], [0, 0, 1], atol=1e-6)
    np.testing.assert_allclose(index.label_fractions[at[0, 64]], [1, 0, 0], atol=1e-6)
    small = (index.slide == 0) & (index.size == 32)
    assert small.sum() == 6 * 6  # the outer columns are glass
    assert np.isclose(index.label_fractions[small, 2].sum(), 4)


def test_only_training_patches_overlap_and_no_tissue_mask_keeps_all(cohort: Path) -> None:
    index = build(run_config(cohort, sizes=(64,), index={"overlap": 0.5, "min_tissue_fraction": 0.0}))
    for number, record in enumerate(index.slides):
        expected = 7 * 5 if record.split == "train" else 4 * 3
        assert np.count_nonzero(index.slide == number) == expected
    assert (index.tissue_fraction == 1).all()


def test_patches_of_a_level_cover_its_downsample(tmp_path: Path) -> None:
    for n in range(2):
        pyramid(tmp_path / f"{n}.tif", rgb(300, 260, n))
        Image.fromarray(np.full((260, 300), n, np.uint8)).save(tmp_path / f"{n}-mask.png")
    manifest(tmp_path, *(f"{n}.tif,{n}-mask.png,,,{s}" for n, s in enumerate(("train", "val"))))
    config = run_config(tmp_path, sizes=(32,), index={"resolution": {"level": 1}, "min_tissue_fraction": 0.0})
    index = build(config)
    assert sorted(set(index.x.tolist())) == [0, 64, 128, 192]
    assert [i.downsample for i in index.infos] == [2.0, 2.0]
    images, labels = SlideStore(index, config).read(np.arange(len(index)))
    assert images.shape == (32, 32, 32, 3) and images.dtype == labels.dtype == np.uint8
    np.testing.assert_array_equal(images[1], rgb(300, 260)[::2, ::2][:32, 32:64])
    assert (labels == index.slide[:, None, None]).all()


def test_slide_smaller_than_a_patch_is_refused_with_both_sizes(cohort: Path) -> None:
    with pytest.raises(DataError, match=r"5 slides cannot be used") as several:
        build(run_config(cohort, sizes=(32, 224)))
    assert "and 2 more" in str(several.value)
    tissue_slide(cohort / "2.png", 100, 190)
    asap(cohort / "2.xml")
    with pytest.raises(DataError, match=r"2\.png: a patch of 128 px is larger than the slide, which has 100 x 190 px"):
        build(run_config(cohort, sizes=(32, 128)))


def test_every_rank_raises_the_same_error_for_slides_that_do_not_open(cohort: Path) -> None:
    for n in (1, 3):
        (cohort / f"{n}.png").write_bytes(b"no image")
    config = run_config(cohort)
    errors = on_ranks(3, partial(build_on, config, 3))
    assert len({str(e) for e in errors}) == 1 and isinstance(errors[0], SlideError)
    assert "2 of 5 slides cannot be read" in str(errors[0]) and "1.png" in str(errors[0]) and "3.png" in str(errors[0])


def test_unreadable_slides_within_the_limit_are_passed_over_and_listed(cohort: Path) -> None:
    splits = [s.split for s in build(run_config(cohort)).slides]
    broken = splits.index("train")
    (cohort / f"{broken}.png").write_bytes(b"no image")
    with pytest.raises(SlideError, match=rf"{broken}\.png: cannot be opened"):
        build(run_config(cohort))
    index = build(run_config(cohort, index={"max_unreadable_fraction": 0.2}))
    assert len(index.unreadable) == 1 and f"{broken}.png: cannot be opened" in index.unreadable[0]
    assert broken not in index.slide and len(index.slides) == 5


def test_annotation_faults_are_collected_and_never_passed_over(cohort: Path) -> None:
    asap(cohort / "0.xml", ("_0", [(0, 0), (40, 40), (40, 0), (0, 40)]))
    config = run_config(cohort, index={"max_unreadable_fraction": 1.0})
    with pytest.raises(AnnotationError, match=r"0\.xml, annotation 'Annotation 0'"):
        build(config)
    asap(cohort / "3.xml", ("_7", square(0, 0, 9)))
    errors = on_ranks(2, partial(build_on, config, 2))
    assert len({str(e) for e in errors}) == 1
    assert "2 slides cannot be used" in str(errors[0]) and "0.xml" in str(errors[0]) and "'_7'" in str(errors[0])


def test_no_patches_on_a_side_is_refused_with_the_number_dropped(cohort: Path) -> None:
    val = next(s.slide for s in build(run_config(cohort)).slides if s.split == "val")
    tissue_slide(val, 256, 192, 0, 0)
    with pytest.raises(DataError, match=r"no validation patches of 32 px: 48 positions on 1 slide\(s\) have less than"):
        build(run_config(cohort))
    for n in range(5):
        tissue_slide(cohort / f"{n}.png", 256, 192, 0, 0)
    with pytest.raises(DataError, match="no training patches of 32 px") as error:
        build(run_config(cohort))
    assert "index.min_tissue_fraction" in error.value.fix


def test_unused_slides_are_not_even_opened_and_progress_is_told(tmp_path: Path) -> None:
    for n in range(3):
        tissue_slide(tmp_path / f"{n}.png", 64, 64)
    (tmp_path / "2.png").write_bytes(b"no image")
    manifest(tmp_path, *(f"{n}.png,,p{n},c{n}," for n in range(3)))
    config = run_config(tmp_path, split={"train_centres": ["c0"], "val_centres": ["c1"]})
    told: list[tuple[int, int]] = []
    index = build_index(config, path_of(config), progress=lambda done, total: told.append((done, total)))
    assert [s.split for s in index.slides] == ["train", "val", "unused"] and told == [(1, 2), (2, 2)]


def test_store_reads_the_pixels_and_labels_of_its_rows_from_many_threads(cohort: Path) -> None:
    config = run_config(cohort)
    index = build(config)
    store: PatchStore = SlideStore(index, config)
    rows = index.select(32, "train")

    def check(row: int) -> None:
        images, labels = store.read(np.array([row]))
        slide = open_slide(index.slides[index.slide[row]].slide)
        np.testing.assert_array_equal(images[0], slide.read(int(index.x[row]), int(index.y[row]), 32))
        np.testing.assert_allclose((labels[0] == 2).mean(), index.label_fractions[row, 2], atol=1e-6)

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(check, rows))
    image, labels = SlideStore(index, config).read_at(0, 250, 180, 16)
    assert image.shape == (16, 16, 3) and (labels[12:] == 255).all() and (labels[:, 6:] == 255).all()


def test_slide_that_vanishes_after_indexing_is_named_by_the_store(cohort: Path) -> None:
    config = run_config(cohort)
    index = build(config)
    (cohort / "0.png").unlink()
    with pytest.raises(SlideError, match=r"0\.png: there is no such file"):
        SlideStore(index, config).read(np.flatnonzero(index.slide == 0)[:1])


def test_real_slide_with_a_mask_is_indexed_and_read(fixtures: Path, tmp_path: Path) -> None:
    wsi = fixtures / "wsi" / "CMU-1-Small-Region.svs"
    mask = np.zeros((2967, 2220), np.uint8)
    mask[:1200] = 1
    Image.fromarray(mask).save(tmp_path / "mask.png")
    copy = tmp_path / "other.svs"
    copy.write_bytes(wsi.read_bytes())
    manifest(tmp_path, f"{wsi},mask.png,,,train", f"{copy},mask.png,,,val")
    config = run_config(tmp_path, sizes=(256, 512))
    index = build(config)
    for size in (256, 512):
        for row in index.select(size, "train"):
            covered = np.clip(1200 - index.y[row], 0, size) / size
            assert index.label_fractions[row, 1] == pytest.approx(covered, abs=1e-6)
    images, labels = SlideStore(index, config).read(index.select(512, "val")[:2])
    assert images.shape == (2, 512, 512, 3) and images.std() > 10 and set(np.unique(labels)) <= {0, 1}


def test_indexing_goes_on_after_a_stop_and_does_only_what_is_new(cohort: Path) -> None:
    config = run_config(cohort)
    whole = (build(config), path_of(config).read_bytes())[1]
    parts = sorted(parts_folder(config, path_of(config)).iterdir())
    assert len(parts) == 5
    parts[2].unlink()
    kept = {p: p.stat().st_mtime_ns for p in parts if p.exists()}
    build(config)
    assert path_of(config).read_bytes() == whole and parts[2].exists()
    assert {p: p.stat().st_mtime_ns for p in kept} == kept
    asap(cohort / "0.xml", ("_0", square(0, 0, 64)))  # another drawing: that slide is done anew
    index = build(config)
    assert len(list(parts_folder(config, path_of(config)).iterdir())) == 6
    assert index.label_fractions[index.rows_of(0, 64)][0].tolist() == [0, 0, 1]


def test_tasks_of_a_job_array_together_leave_what_one_run_leaves(cohort: Path) -> None:
    config = run_config(cohort)
    build(config)
    whole = path_of(config).read_bytes()
    shutil.rmtree(parts_folder(config, path_of(config)))
    for task in range(3):
        do_jobs(jobs_of(config, path_of(config))[task::3])
    done: list[Any] = []
    build_index(config, path_of(config), run=lambda job, jobs: [done.append(j) or job(j) for j in jobs])
    assert path_of(config).read_bytes() == whole and len(done) == 5


def test_runs_that_share_a_folder_index_a_slide_once_whichever_side_it_is_on(cohort: Path) -> None:
    def fold(number: int, **index: Any) -> Config:
        split = {"folds": 4, "fold": number}
        return run_config(cohort, index=index, index_parts=cohort / "parts", split=split)

    for number in (1, 2, 3, 4):
        build_index(fold(number), cohort / f"{number}" / "index.parquet")
    assert len(list((cohort / "parts").iterdir())) == 5
    build_index(fold(1, overlap=0.5), cohort / "5" / "index.parquet")
    build_index(fold(2, overlap=0.5), cohort / "6" / "index.parquet")
    assert len(list((cohort / "parts").iterdir())) == 5 + 7, "two slides have changed sides, where sides differ"


def test_random_positions_are_seeded_drawn_per_class_and_for_training_only(cohort: Path) -> None:
    random = {"positions": "random", "random_per_class": 7, "min_tissue_fraction": 0.5}
    config = run_config(cohort, sizes=(32,), index=random)
    index = build(config)
    for number, record in enumerate(index.slides):
        rows = np.flatnonzero(index.slide == number)
        if record.split != "train":
            assert (index.x[rows] % 32 == 0).all() and len(rows) == 36
            continue
        tumour = (index.label_fractions[rows, 2] >= 0.01).sum()
        assert tumour == 7 and len(rows) == 14 and (index.tissue_fraction[rows] >= 0.5).all()
        assert index.x[rows].max() <= 256 - 32 and index.y[rows].max() <= 192 - 32
    again = build(config.model_copy(update={"output": cohort / "elsewhere" / "run"}))
    np.testing.assert_array_equal(index.x, again.x)
    other = build(config.model_copy(update={"seed": 2}))
    assert not np.array_equal(index.x[: len(other.x)], other.x[: len(index.x)])


def test_cap_keeps_at_most_so_many_positive_and_negative_patches(cohort: Path) -> None:
    index = build(run_config(cohort, sizes=(32,), index={"max_per_slide": 3, "min_tissue_fraction": 0.0}))
    for number, record in enumerate(index.slides):
        positive = index.label_fractions[index.slide == number, 2] > 0
        expected = (3, 3) if record.split == "train" else (4, 44)
        assert (positive.sum(), (~positive).sum()) == expected


def test_patches_at_an_mpp_cover_the_same_tissue_on_slides_of_any_resolution(tmp_path: Path) -> None:
    for name, side in (("fine", 512), ("coarse", 256)):
        tissue_slide(tmp_path / f"{name}.png", side, side, 0, side // 2)
        right_half = np.tile(np.arange(side) >= side // 2, (side, 1)).astype(np.uint8)
        Image.fromarray(right_half).save(tmp_path / f"{name}-m.png")
    rows = ["fine.png,fine-m.png,train,0.25", "coarse.png,coarse-m.png,val,"]
    manifest(tmp_path, *rows, header="slide,annotation,split,mpp")
    index_settings = {"resolution": {"mpp": 1.0}, "min_tissue_fraction": 0.0}
    config = run_config(tmp_path, sizes=(32,), index=index_settings)
    with pytest.raises(SlideError, match=r"coarse\.png: the file does not say its resolution") as error:
        build(config)
    assert "data.mpp" in error.value.fix
    config = config.model_copy(update={"data": config.data.model_copy(update={"mpp": 0.5})})
    index = build(config)
    assert [i.downsample for i in index.infos] == [4.0, 2.0] and [i.mpp for i in index.infos] == [0.25, 0.5]
    fine, coarse = index.rows_of(0, 32), index.rows_of(1, 32)
    np.testing.assert_array_equal(index.label_fractions[fine], index.label_fractions[coarse])
    images, labels = SlideStore(index, config).read(np.arange(len(index)))
    np.testing.assert_allclose(images[fine].astype(int), images[coarse].astype(int), atol=8)  # the filter's width
    np.testing.assert_array_equal(labels[fine], labels[coarse])
    with pytest.raises(SlideError, match="would be enlarged"):
        build(run_config(tmp_path, sizes=(32,), index={"resolution": {"mpp": 0.1}}))
