from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from small_slides import manifest, run_config, tissue_slide

from trainer.errors import DataError
from trainer.patches.index import PatchIndex, SlideInfo, fingerprint, read_fingerprint, read_index, write_index
from trainer.slides.dataset import SlideRecord


@pytest.fixture
def index() -> PatchIndex:
    slides = (
        SlideRecord(Path("/d/a.svs"), Path("/d/a.xml"), "p1", "c1", "train"),
        SlideRecord(Path("/d/b.svs"), None, "p2", "c1", "val"),
        SlideRecord(Path("/d/c.svs"), None, "", "", "unused"),
    )
    rng = np.random.default_rng(0)
    return PatchIndex(
        slides=slides,
        slide=np.array([0, 0, 0, 1, 1], np.int32),
        infos=(SlideInfo((512, 256), 2.0, 0.25, "h", "a", None, {"groups": {"_0": 1}}, {"64": 3}), *[SlideInfo()] * 2),
        x=np.array([0, 64, 0, 0, 1 << 30], np.int32),
        y=np.array([0, 0, 64, 0, 5], np.int32),
        size=np.array([64, 64, 128, 64, 128], np.int32),
        tissue_fraction=rng.random(5, np.float32),
        label_fractions=rng.random((5, 3), np.float32),
        class_names=("normal", "stroma", "tumour"),
        patch_sizes=(64, 128),
        fingerprint="f",
        unreadable=("/d/x.svs: broken",),
    )


def test_index_comes_back_as_written_and_with_the_documented_columns(index: PatchIndex, tmp_path: Path) -> None:
    path = tmp_path / "index.parquet"
    write_index(index, path)
    back = read_index(path)
    for name, value in vars(index).items():
        if isinstance(value, np.ndarray):
            np.testing.assert_array_equal(getattr(back, name), value)
            assert getattr(back, name).dtype == value.dtype
        else:
            assert getattr(back, name) == value
    table = pq.read_table(path).to_pylist()
    assert list(table[3]) == [
        "slide", "x", "y", "size", "tissue_fraction", "fraction_normal", "fraction_stroma", "fraction_tumour",
        "patient", "centre", "split",
    ]  # fmt: skip
    assert [table[3][k] for k in ("slide", "patient", "centre", "split")] == ["/d/b.svs", "p2", "c1", "val"]
    assert [p.name for p in tmp_path.iterdir()] == ["index.parquet"]


def test_equal_indices_give_equal_bytes(index: PatchIndex, tmp_path: Path) -> None:
    write_index(index, tmp_path / "a")
    write_index(replace(index), tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_rows_are_selected_by_size_and_split(index: PatchIndex) -> None:
    assert len(index) == 5
    assert index.select(64, "train").tolist() == [0, 1]
    assert index.select(128, "val").tolist() == [4]
    assert index.select(64, "test").dtype == np.int64 and len(index.select(64, "test")) == 0


def test_files_that_are_no_index_are_refused(index: PatchIndex, tmp_path: Path) -> None:
    path = tmp_path / "index.parquet"
    with pytest.raises(DataError, match="there is no such file"):
        read_index(path)
    write_index(index, path)
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(DataError, match=r"index\.parquet: is not a patch index that can be read"):
        read_index(path)
    pq.write_table(pa.table({"a": [1]}), path)
    with pytest.raises(DataError, match="is not a patch index"):
        read_index(path)
    path.write_text("text")
    with pytest.raises(DataError, match="is not a patch index") as error:
        read_index(path)
    assert "widefield index" in error.value.fix


def test_fingerprint_changes_with_settings_and_files_and_with_nothing_else(tmp_path: Path) -> None:
    for name in "abc":
        tissue_slide(tmp_path / f"{name}.png", 64, 64)
    manifest(tmp_path, "a.png,,,,", "b.png,,,,")
    first = fingerprint(run_config(tmp_path))
    same = run_config(tmp_path, name="other", training={"log_every_steps": 3}, output=tmp_path / "elsewhere")
    assert fingerprint(same) == first
    others = [
        run_config(tmp_path, sizes=(32,)), run_config(tmp_path, seed=2), run_config(tmp_path, index={"overlap": 0.5}),
        run_config(tmp_path, split={"by": "slide"}),
    ]  # fmt: skip
    found = {first, *(fingerprint(c) for c in others)}
    manifest(tmp_path, "a.png,,,,", "b.png,,p1,,")
    found.add(fingerprint(run_config(tmp_path)))
    manifest(tmp_path, "a.png,,,,", "b.png,,,,")
    tissue_slide(tmp_path / "b.png", 80, 64)
    found.add(fingerprint(run_config(tmp_path)))
    assert len(found) == 7


def test_rows_of_a_slide_and_size_follow_one_another(index: PatchIndex) -> None:
    assert [index.rows_of(s, z) for s in range(3) for z in (64, 128)] == [
        slice(0, 2), slice(2, 3), slice(3, 4), slice(4, 5), slice(5, 5), slice(5, 5),
    ]  # fmt: skip


def test_fingerprint_is_read_alone_and_is_empty_for_other_files(index: PatchIndex, tmp_path: Path) -> None:
    write_index(index, tmp_path / "a")
    assert read_fingerprint(tmp_path / "a") == "f"
    (tmp_path / "b").write_text("no index")
    assert read_fingerprint(tmp_path / "b") == read_fingerprint(tmp_path / "c") == ""


def test_an_index_of_many_row_groups_comes_back(
    index: PatchIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainer.patches.index._ROW_GROUP", 2)
    write_index(index, tmp_path / "a")
    assert pq.ParquetFile(tmp_path / "a").num_row_groups == 3
    back = read_index(tmp_path / "a")
    for name in ("slide", "x", "y", "size", "tissue_fraction", "label_fractions"):
        np.testing.assert_array_equal(getattr(back, name), getattr(index, name))
