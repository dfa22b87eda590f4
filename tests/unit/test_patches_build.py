from __future__ import annotations

import pickle
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
from trainer.patches.build import build_index
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
            return [pickle.loads(s) for s in slots]

        try:
            return job(number, gather)
        except Exception as error:
            return error

    with ThreadPoolExecutor(world_size) as pool:
        return list(pool.map(rank, range(world_size)))


def build_on(config: Config, world_size: int, rank: int, gather: Callable[[Any], list[Any]]) -> PatchIndex:
    return build_index(config, rank, world_size, gather)


def build(config: Config) -> PatchIndex:
    return build_index(config, 0, 1, lambda value: [value])


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
    config = run_config(tmp_path, sizes=(32,), index={"level": 1, "min_tissue_fraction": 0.0})
    index = build(config)
    assert sorted(set(index.x.tolist())) == [0, 64, 128, 192] and (index.level == 1).all()
    images, labels = SlideStore(index, config.data).read(np.arange(len(index)))
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
    index = build_index(config, 0, 1, lambda v: [v], lambda done, total: told.append((done, total)))
    assert [s.split for s in index.slides] == ["train", "val", "unused"] and told == [(1, 2), (2, 2)]


def test_store_reads_the_pixels_and_labels_of_its_rows_from_many_threads(cohort: Path) -> None:
    config = run_config(cohort)
    index = build(config)
    store: PatchStore = SlideStore(index, config.data)
    rows = index.select(32, "train")

    def check(row: int) -> None:
        images, labels = store.read(np.array([row]))
        slide = open_slide(index.slides[index.slide[row]].slide)
        np.testing.assert_array_equal(images[0], slide.read(int(index.x[row]), int(index.y[row]), 32))
        np.testing.assert_allclose((labels[0] == 2).mean(), index.label_fractions[row, 2], atol=1e-6)

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(check, rows))
    image, labels = SlideStore(index, config.data).read_at(0, 250, 180, 16, 0)
    assert image.shape == (16, 16, 3) and (labels[12:] == 255).all() and (labels[:, 6:] == 255).all()
    assert SlideStore(index, config.data).downsample(0, 0) == 1.0


def test_slide_that_vanishes_after_indexing_is_named_by_the_store(cohort: Path) -> None:
    config = run_config(cohort)
    index = build(config)
    (cohort / "0.png").unlink()
    with pytest.raises(SlideError, match=r"0\.png: there is no such file"):
        SlideStore(index, config.data).read(np.flatnonzero(index.slide == 0)[:1])


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
    images, labels = SlideStore(index, config.data).read(index.select(512, "val")[:2])
    assert images.shape == (2, 512, 512, 3) and images.std() > 10 and set(np.unique(labels)) <= {0, 1}
