from __future__ import annotations

import io
import resource
import shutil
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from small_slides import asap, manifest, pyramid, run_config, square

from trainer.config import Config
from trainer.errors import StoreError
from trainer.evaluate.tiles import footprint_tiles, validation_tiles
from trainer.patches.build import build_index
from trainer.patches.index import PatchIndex
from trainer.slides.dataset import SlideRecord
from trainer.stores import Part, open_store, store_format
from trainer.stores.extract import Outcome, extract, jobs_of, unfinished
from trainer.stores.extracted import ExtractedStore
from trainer.stores.lookup import patch_around, patch_at
from trainer.stores.slide_store import SlideStore
from trainer.stores.stage import stage

KINDS = ("hdf5", "tfrecord")


def stained(width: int, height: int, seed: int) -> np.ndarray:
    """Smooth pink tissue of changing strength, which JPEG keeps well."""
    y, x = np.mgrid[:height, :width]
    wave = np.sin(x / (9 + seed)) * np.cos(y / 11)
    return np.stack([205 + 15 * wave, 100 + 60 * wave, 160 + 30 * wave], axis=2).astype(np.uint8)


def cohort(folder: Path, kind: str = "hdf5", resolution: dict | None = None, **stores: object) -> Config:
    """Three slides of tissue with a tumour square each; the third validates, the second has no annotation."""
    rows = []
    for n in range(3):
        pyramid(folder / f"{n}.tif", stained(512 + 32 * n, 448, n))
        asap(folder / f"{n}.xml", ("_0", square(70.5, 50, 90 + n)))
        rows.append(f"{n}.tif,{n}.xml,p{n},,{'val' if n == 2 else 'train'}".replace("1.xml", ""))
    manifest(folder, *rows)
    return run_config(
        folder,
        sizes=(32, 80),
        index={"min_tissue_fraction": 0.0, "overlap": 0.3, "resolution": resolution or {"level": 0}},
        stores={"kind": kind, "path": folder / "store", "image": "lossless", **stores},
    )


def fill(config: Config, index: PatchIndex | None = None) -> tuple[PatchIndex, list[Outcome]]:
    index = index or build_index(config, config.output / "index.parquet")
    todo = [job for job in map(unfinished, jobs_of(index, config, range(len(index.slides)))) if job.files]
    return index, extract(todo, map, lambda outcome: None)


def extracted(index: PatchIndex, config: Config) -> ExtractedStore:
    store = open_store(index, config)
    assert isinstance(store, ExtractedStore)
    return store


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def same(a: tuple[np.ndarray, np.ndarray], b: tuple[np.ndarray, np.ndarray]) -> bool:
    return np.array_equal(a[0], b[0]) and np.array_equal(a[1], b[1])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("resolution", [{"level": 0}, {"level": 1}])
def test_a_lossless_store_gives_the_pixels_and_labels_of_the_slides(
    tmp_path: Path, kind: str, resolution: dict
) -> None:
    config = cohort(tmp_path, kind, resolution)
    index, _ = fill(config)
    store, slides = extracted(index, config), SlideStore(index, config)
    for size in config.patch_sizes:
        rows = np.random.default_rng(0).permutation(np.flatnonzero(index.size == size))
        assert len(rows) > 20
        assert same(store.read(rows), slides.read(rows))


@pytest.mark.parametrize("kind", ["slide", *KINDS])
@pytest.mark.parametrize("resolution", [{"level": 0}, {"level": 1}])
def test_a_part_of_a_patch_is_what_the_whole_shows_there(tmp_path: Path, kind: str, resolution: dict) -> None:
    config = cohort(tmp_path, kind if kind in KINDS else "hdf5", resolution)
    index, _ = fill(config)
    store = SlideStore(index, config) if kind == "slide" else extracted(index, config)
    rows = np.flatnonzero(index.size == 80)
    whole = store.read(rows)
    assert len(np.unique(whole[1])) == 2
    for part in (Part(0, 0, 80, 32), Part(0, 32, 80, 48), Part(7, 11, 5, 60)):
        cut = tuple(
            pixels[:, part.top : part.top + part.height, part.left : part.left + part.width] for pixels in whole
        )
        assert same(store.read(rows, part), cut)
        where = [int(column[rows[0]]) for column in (index.slide, index.x, index.y, index.size)]
        assert same(store.read_at(*where, part), (cut[0][0], cut[1][0]))


def test_jpeg_is_close_and_its_labels_are_exact(tmp_path: Path) -> None:
    config = cohort(tmp_path, image="jpeg", jpeg_quality=90)
    index, _ = fill(config)
    rows = np.flatnonzero(index.size == 80)
    images, labels = open_store(index, config).read(rows)
    true_images, true_labels = SlideStore(index, config).read(rows)
    assert np.abs(images.astype(int) - true_images).mean() < 1.5
    assert np.array_equal(labels, true_labels) and len(np.unique(labels)) == 2


@pytest.mark.parametrize("resolution", [{"level": 0}, {"level": 1}])
def test_every_tile_of_the_common_footprint_is_read_from_the_patch_that_holds_it(
    tmp_path: Path, resolution: dict
) -> None:
    config = cohort(tmp_path, resolution=resolution)
    index, _ = fill(config)
    store, slides = open_store(index, config), SlideStore(index, config)
    regions = validation_tiles(index, 80, seed=1)
    assert regions
    for region in regions:
        for tile in footprint_tiles([region], 32, index.infos[region.slide].downsample):
            where = (tile.slide, tile.x, tile.y, tile.size)
            assert same(store.read_at(*where), slides.read_at(*where))


def test_a_square_that_no_patch_holds_is_an_error_that_says_so(tmp_path: Path) -> None:
    config = cohort(tmp_path)
    index, _ = fill(config)
    with pytest.raises(StoreError, match=r"no extracted patch holds the 32 px square at \(5000, 1\)") as caught:
        open_store(index, config).read_at(0, 5000, 1, 32)
    assert "0.tif" in str(caught.value) and "stores.kind=slide" in str(caught.value)


def test_threads_reading_together_get_what_one_gets(tmp_path: Path) -> None:
    config = cohort(tmp_path, image="jpeg")
    index, _ = fill(config)
    rows = [np.array([r]) for r in np.random.default_rng(1).integers(0, len(index), 400)]
    alone = [open_store(index, config).read(r) for r in rows]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(open_store(index, config).read, rows))
    assert all(same(a, b) for a, b in zip(alone, together, strict=True))


def test_hdf5_files_can_be_read_with_h5py_alone_as_documented(tmp_path: Path) -> None:
    config = cohort(tmp_path)
    index, _ = fill(config)
    rows = index.rows_of(2, 80)
    (path,) = (tmp_path / "store" / "p80").glob("2-*.h5")
    images, labels = SlideStore(index, config).read(np.arange(rows.start, rows.stop))
    with h5py.File(path) as file:
        assert np.array_equal(file["x"], index.x[rows]) and np.array_equal(file["y"], index.y[rows])
        assert file.attrs["slide"] == "2.tif" and file.attrs["slide_hash"] == index.infos[2].slide_hash
        for i in range(len(images)):
            segment, start, image_bytes, label_bytes = file["where"][i]
            found = file[f"data/{segment}"][start : start + image_bytes + label_bytes].tobytes()
            image = np.asarray(Image.open(io.BytesIO(found[:image_bytes])))
            label = np.frombuffer(zlib.decompress(found[image_bytes:]), np.uint8).reshape(image.shape[:2])
            assert same((image, label), (images[i], labels[i]))


def test_tfrecord_files_can_be_read_with_tf_data_as_documented(tmp_path: Path) -> None:
    import tensorflow as tf

    config = cohort(tmp_path, "tfrecord")
    index, _ = fill(config)
    features = {
        "image/encoded": tf.io.FixedLenFeature([], tf.string),
        "label/encoded": tf.io.FixedLenFeature([], tf.string),
        "image/height": tf.io.FixedLenFeature([], tf.int64),
        "image/width": tf.io.FixedLenFeature([], tf.int64),
        "x": tf.io.FixedLenFeature([], tf.int64),
        "y": tf.io.FixedLenFeature([], tf.int64),
    }

    def parse(record):
        example = tf.io.parse_single_example(record, features)
        image = tf.io.decode_image(example["image/encoded"], channels=3, expand_animations=False)
        labels = tf.io.decode_raw(tf.io.decode_compressed(example["label/encoded"], "ZLIB"), tf.uint8)
        return example["x"], example["y"], image, tf.reshape(labels, [example["image/height"], example["image/width"]])

    slides, (path,) = SlideStore(index, config), (tmp_path / "store" / "p80").glob("0-*.tfrecord")
    found = list(tf.data.TFRecordDataset(str(path)).map(parse).as_numpy_iterator())
    rows = index.rows_of(0, 80)
    assert {(x, y) for x, y, *_ in found} == set(zip(index.x[rows], index.y[rows], strict=True))
    assert all(same((image, labels), slides.read_at(0, int(x), int(y), 80)) for x, y, image, labels in found)


def slide_replaced(folder: Path) -> None:
    pyramid(folder / "0.tif", stained(512, 448, 9))


def annotation_redrawn(folder: Path) -> None:
    asap(folder / "0.xml", ("_0", square(10, 10, 200)))


def file_deleted(folder: Path) -> None:
    for path in (folder / "store" / "p32").glob("0-*"):
        path.unlink()


def file_truncated(folder: Path) -> None:
    for path in (folder / "store" / "p32").glob("0-*"):
        if path.suffix != ".npz":
            path.write_bytes(path.read_bytes()[:-300])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("change", "settings", "said", "redone"),
    [
        (slide_replaced, {}, "slide_hash: ", {"p32/0", "p80/0"}),
        (annotation_redrawn, {}, "annotation_hash: ", {"p32/0", "p80/0"}),
        (file_deleted, {}, "is missing", {"p32/0"}),
        (file_truncated, {}, "is not whole", {"p32/0"}),
        (None, {"image": "jpeg"}, "image: png in the file, jpeg 4:4:4 quality 90 now", None),
    ],
)
def test_a_stale_file_is_named_before_training_and_extract_does_exactly_the_stale_ones_again(
    tmp_path: Path, kind: str, change, settings: dict, said: str, redone: set[str] | None
) -> None:
    fill(cohort(tmp_path, kind))
    config = cohort(tmp_path, kind, **settings)
    if change:
        change(tmp_path)
    index = build_index(config, config.output / "index.parquet")
    with pytest.raises(StoreError) as caught:
        open_store(index, config)
    assert said in str(caught.value) and "p32/0-" in str(caught.value)
    assert "fix: widefield extract CONFIG" in str(caught.value)
    _, outcomes = fill(config, index)
    done = {str(f.path.relative_to(tmp_path / "store")).split("-")[0] for o in outcomes for f in o.job.files}
    assert done == (redone or {f"p{s}/{n}" for s in (32, 80) for n in range(3)})
    store, slides, rows = open_store(index, config), SlideStore(index, config), np.flatnonzero(index.size == 32)
    assert np.array_equal(store.read(rows)[1], slides.read(rows)[1])


def test_a_damaged_patch_is_an_error_and_not_a_picture(tmp_path: Path) -> None:
    config = cohort(tmp_path)
    index, _ = fill(config)
    store, row = extracted(index, config), int(np.flatnonzero(index.size == 80)[3])
    path = store.source.file_of(row)
    path.write_bytes(
        path.read_bytes().replace(store.source.encoded(row).image, b"\0" * len(store.source.encoded(row).image))
    )
    with pytest.raises(StoreError, match=f"patch {row} of the index is damaged") as caught:
        store.read(np.array([row]))
    assert str(path) in str(caught.value) and "fix: delete the file" in str(caught.value)


def test_other_positions_are_noticed(tmp_path: Path) -> None:
    config = cohort(tmp_path)
    fill(config)
    wider = config.model_copy(update={"index": config.index.model_copy(update={"overlap": 0.5})})
    index = build_index(wider, tmp_path / "other.parquet")
    with pytest.raises(StoreError, match=r"4 of 6 files.*\n.*num_patches: \d+ in the file, \d+ now; positions: "):
        open_store(index, wider)


def test_slides_of_one_name_in_two_folders_have_two_files(tmp_path: Path) -> None:
    for n, folder in enumerate(("a", "b")):
        (tmp_path / folder).mkdir()
        pyramid(tmp_path / folder / "s.tif", stained(256, 256, n))
    manifest(tmp_path, "a/s.tif,,a,,train", "b/s.tif,,b,,val")
    config = run_config(tmp_path, index={"min_tissue_fraction": 0.0},
                        stores={"kind": "hdf5", "path": tmp_path / "store", "image": "lossless"})  # fmt: skip
    index, _ = fill(config)
    rows = np.flatnonzero(index.size == 64)
    assert same(open_store(index, config).read(rows), SlideStore(index, config).read(rows))


@pytest.mark.parametrize("kind", KINDS)
def test_staged_rows_need_the_shared_files_no_more(tmp_path: Path, kind: str) -> None:
    config = cohort(tmp_path, kind)
    index, _ = fill(config)
    (tmp_path / "local").mkdir()
    rng = np.random.default_rng(3)
    rows = rng.permutation(np.flatnonzero(index.size == 32))[:100]
    others = np.setdiff1d(np.flatnonzero(index.size == 32), rows)
    store = extracted(index, config)
    staged = stage(store, np.concatenate([rows, rows[:7]]), str(tmp_path / "local"))
    assert same(staged.read(others), store.read(others))
    before = store.read(rows)
    for path in (tmp_path / "store").rglob("*.*"):
        path.write_bytes(b"")
    assert same(staged.read(rows), before)
    assert same(staged.read_at(*(int(c[rows[0]]) for c in (index.slide, index.x, index.y)), 32),
                (before[0][0], before[1][0]))  # fmt: skip
    with pytest.raises(StoreError, match="cannot be read: ends inside patch"):
        staged.read(others[:1])
    assert not list((tmp_path / "local").iterdir()), "the copy has no name, so that nothing of it stays behind"


def test_a_staging_folder_that_cannot_serve_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = cohort(tmp_path)
    store = extracted(fill(config)[0], config)
    monkeypatch.delenv("WIDEFIELD_LOCAL", raising=False)
    with pytest.raises(StoreError, match="WIDEFIELD_LOCAL is not set on this node"):
        stage(store, np.arange(3), "$WIDEFIELD_LOCAL/x")
    with pytest.raises(StoreError, match="not a folder that can be written"):
        stage(store, np.arange(3), str(tmp_path / "absent"))


def test_too_little_room_for_staging_is_said_in_numbers(tmp_path: Path) -> None:
    config = cohort(tmp_path)
    store = extracted(fill(config)[0], config)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(StoreError, match=r"patches of this rank need \d+\.\d MiB, .* has \d+\.\d MiB free"):
            stage(store, np.arange(100), str(tmp_path))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


FLAT = SlideRecord(Path("/s.tif"), None, split="train")


def flat_index(points: dict[int, list[tuple[int, int]]], downsample: float) -> PatchIndex:
    from trainer.patches.index import SlideInfo

    rows = [(size, y, x) for size in sorted(points) for y, x in sorted({(y, x) for x, y in points[size]})]
    size, y, x = np.array(rows, np.int32).reshape(-1, 3).T
    zeros = np.zeros(len(rows), np.int32)
    return PatchIndex(
        (FLAT,), (SlideInfo((9999, 9999), downsample),), zeros, x, y, size, np.ones(len(rows), np.float32),
        np.ones((len(rows), 2), np.float32), ("a", "b"), tuple(sorted(points)),
    )  # fmt: skip


CORNERS = st.lists(st.tuples(st.integers(0, 300), st.integers(0, 300)), min_size=1, max_size=30)


@settings(max_examples=200, deadline=None)
@given(CORNERS, CORNERS, st.sampled_from([1.0, 2.0, 4.0001, 1.37]), st.integers(0, 400), st.integers(0, 400), st.data())
def test_a_square_is_found_in_a_larger_patch_exactly_when_one_holds_it(
    small: list, large: list, downsample: float, x: int, y: int, data: st.DataObject
) -> None:
    index = flat_index({32: small, 96: large}, downsample)
    if data.draw(st.booleans()):  # a square that is certainly inside one
        px, py = data.draw(st.sampled_from(large))
        dx, dy = data.draw(st.tuples(st.integers(0, 64), st.integers(0, 64)))
        x, y = px + round(dx * downsample), py + round(dy * downsample)
    offsets = [(o, round(o * downsample)) for o in range(96 - 32 + 1)]
    holders = {
        (px, py, left, top)
        for px, py in large
        for left, l0_left in offsets
        if px + l0_left == x
        for top, l0_top in offsets
        if py + l0_top == y
    }
    crop = patch_around(index, 0, x, y, 32)
    found = crop and (int(index.x[crop.row]), int(index.y[crop.row]), crop.left, crop.top)
    assert (found in holders) if holders else (found is None)
    row = patch_at(index, 0, x, y, 32)
    assert (row is not None) == ((x, y) in small)
    assert row is None or (index.x[row], index.y[row], index.size[row]) == (x, y, 32)


@pytest.mark.parametrize("kind", KINDS)
def test_equal_slides_and_settings_give_equal_bytes_at_any_time(tmp_path: Path, kind: str) -> None:
    config = cohort(tmp_path, kind)
    index, _ = fill(config)
    first = files(tmp_path / "store")
    time.sleep(1.1)  # formats keep times in whole seconds
    shutil.rmtree(tmp_path / "store")
    fill(config, index)
    assert files(tmp_path / "store") == first


def test_a_format_is_named_by_the_kind_of_store() -> None:
    assert [store_format(kind).suffix for kind in KINDS] == [".h5", ".tfrecord"]
