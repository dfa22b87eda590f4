from __future__ import annotations

from pathlib import Path

import pytest
from small_slides import data_config, manifest

from trainer.errors import DataError
from trainer.slides.dataset import SlideRecord, load_dataset


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def load(path: Path, layout: str = "manifest") -> list[SlideRecord]:
    return load_dataset(data_config(path, format=layout))


def test_manifest_paths_start_at_its_folder_and_empty_cells_are_unknown(tmp_path: Path) -> None:
    touch(tmp_path, "s/a.svs", "b.png", "b-mask.png")
    path = manifest(tmp_path, "s/a.svs,,p1,c2,test", f"{tmp_path}/b.png,b-mask.png,,,")
    assert load(path) == [
        SlideRecord(tmp_path / "s/a.svs", None, "p1", "c2", "test"),
        SlideRecord(tmp_path / "b.png", tmp_path / "b-mask.png"),
    ]
    touch(tmp_path, "a.svs")
    assert load(manifest(tmp_path, "a.svs,", header="\ufeffslide,annotation")) == [
        SlideRecord(tmp_path / "a.svs", None)
    ]


@pytest.mark.parametrize(
    ("header", "rows", "message"),
    [
        ("slide,annotation", ["a.svs,", "gone.svs,"], r"slides\.csv:3: slide .*gone\.svs does not exist"),
        ("slide,annotation", ["a.svs,gone.xml"], r"slides\.csv:2: annotation .*gone\.xml does not exist"),
        ("slide", ["a.svs"], r"slides\.csv:1: has no column 'annotation'"),
        ("slide,annotation,center", ["a.svs,,1"], r"unknown column 'center'"),
        ("slide,annotation,split", ["a.svs,,training"], r"slides\.csv:2: split 'training' is not known"),
        ("slide,annotation", ["a.svs,", "./a.svs,"], r"a\.svs is listed twice"),
        ("slide,annotation", [",a.svs"], r"slides\.csv:2: names no slide"),
        ("slide,annotation", ["a.svs,,extra"], r"slides\.csv:2: has more values"),
        ("slide,annotation", [], "holds no slide"),
        ("", [], "has no column 'slide'"),
    ],
)
def test_faults_of_a_manifest_are_named_by_line(tmp_path: Path, header: str, rows: list[str], message: str) -> None:
    touch(tmp_path, "a.svs")
    with pytest.raises(DataError, match=message):
        load(manifest(tmp_path, *rows, header=header))


def test_unknown_column_suggests_the_nearest_and_missing_manifest_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="did you mean 'centre'"):
        load(manifest(tmp_path, header="slide,annotation,center"))
    with pytest.raises(DataError, match=r"none\.csv: there is no such file"):
        load(tmp_path / "none.csv")
    with pytest.raises(DataError, match="cannot be read as CSV"):
        load(tmp_path)


@pytest.mark.parametrize("prefix", ["training/", ""])
def test_camelyon16_is_found_as_published_and_flat(tmp_path: Path, prefix: str) -> None:
    testing = "testing/images/" if prefix else "test/"
    touch(
        tmp_path, f"{prefix}normal/normal_002.tif", f"{prefix}normal/Normal_001.tif", f"{prefix}tumor/tumor_001.tif",
        f"{prefix}lesion_annotations/tumor_001.xml", f"{testing}test_001.tif", f"{testing}test_002.tif",
        "testing/lesion_annotations/Test_001.xml", "training/tumor_001_mask.tif", "README.md",
    )  # fmt: skip
    found = [(r.slide.name, r.annotation.name if r.annotation else None, r.split) for r in load(tmp_path, "camelyon16")]
    assert found == [
        ("Normal_001.tif", None, ""),
        ("normal_002.tif", None, ""),
        ("test_001.tif", "Test_001.xml", "test"),
        ("test_002.tif", None, "test"),
        ("tumor_001.tif", "tumor_001.xml", ""),
    ]


def test_camelyon16_faults(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no slide in the camelyon16 format"):
        load(tmp_path, "camelyon16")
    touch(tmp_path, "tumor/tumor_001.tif")
    with pytest.raises(DataError, match=r"tumour slide .*tumor_001\.tif has no tumor_001\.xml"):
        load(tmp_path, "camelyon16")
    touch(tmp_path, "tumor_001.xml", "copy/tumor_001.xml")
    with pytest.raises(DataError, match="have the same name"):
        load(tmp_path, "camelyon16")


def test_camelyon17_takes_outlined_and_negative_slides_with_centre_and_patient(tmp_path: Path) -> None:
    touch(
        tmp_path, "training/centre_0/patient_004_node_4.tif", "training/centre_0/patient_004_node_0.tif",
        "training/center_3/patient_010_node_1.tif", "patient_099_node_2.tif", "patient_050_node_0.tif",
        "lesion_annotations/patient_004_node_4.xml", "lesion_annotations/patient_099_node_2.xml",
    )  # fmt: skip
    (tmp_path / "stages.csv").write_text(
        "patient,stage\npatient_004.zip,pN1\npatient_004_node_0.tif,negative\n"
        "patient_010_node_1.tif,negative\npatient_050_node_0.tif,macro\n"
    )
    found = [(r.slide.stem, r.annotation is not None, r.patient, r.centre) for r in load(tmp_path, "camelyon17")]
    assert found == [
        ("patient_004_node_0", False, "patient_004", "0"),
        ("patient_004_node_4", True, "patient_004", "0"),
        ("patient_010_node_1", False, "patient_010", "3"),
        ("patient_099_node_2", True, "patient_099", "4"),
    ]
